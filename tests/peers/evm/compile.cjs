// Compiles one Solidity source, read from standard input: {"name": [abi, bytecode], ...} as JSON.
const solc = require(process.env.EVM_HOME + "/node_modules/solc");

const content = require("fs").readFileSync(0, "utf8");
const settings = {
  optimizer: { enabled: true, runs: 200 },
  evmVersion: "cancun",
  viaIR: true,
  metadata: { bytecodeHash: "none" },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
};
const input = { language: "Solidity", sources: { source: { content } }, settings };
const output = JSON.parse(solc.compile(JSON.stringify(input)));
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
