// Compiles a Solidity source, with what it imports from beside it, and prints what the contracts in
// it are: {"name": [abi, bytecode], ...} as JSON.
const { readFileSync } = require("fs");
const { dirname, join } = require("path");
const solc = require(process.env.EVM_HOME + "/node_modules/solc");

const source = process.argv[2];
const content = readFileSync(source, "utf8");
const beside = (name) => ({ contents: readFileSync(join(dirname(source), name), "utf8") });
const settings = {
  optimizer: { enabled: true, runs: 200 },
  evmVersion: "cancun",
  viaIR: true,
  metadata: { bytecodeHash: "none" },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
};
const input = { language: "Solidity", sources: { source: { content } }, settings };
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: beside }));
const errors = (output.errors ?? []).filter((one) => one.severity === "error");
if (errors.length) {
  console.error(errors.map((one) => one.formattedMessage).join("\n"));
  process.exit(1);
}
const made = Object.entries(output.contracts.source).map(([name, one]) => [
  name,
  [one.abi, one.evm.bytecode.object],
]);
console.log(JSON.stringify(Object.fromEntries(made)));
