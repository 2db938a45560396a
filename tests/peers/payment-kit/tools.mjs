// Drives payment-kit's own MCP client: a scenario on stdin, what happened as one line after "@@".
import { fixChain, kit, signer } from './chain.mjs';

const scenario = JSON.parse(await new Response(process.stdin).text());
fixChain(scenario.chain);

const clients = {};

async function client(name) {
  if (clients[name]) return clients[name];
  const key = scenario.keys[name];
  const kept = new Map();
  return (clients[name] = new kit.PaymentChannelMcpClient({
    baseUrl: scenario.baseUrl,
    chainConfig: { chain: 'rooch', rpcUrl: 'http://127.0.0.1:1' },
    signer: await signer(key),
    keyId: key.keyId,
    maxAmount: BigInt(scenario.maxAmount ?? '500000000000'),
    mappingStore: {
      getState: async (of) => kept.get(of),
      setState: async (of, state) => void kept.set(of, state),
      deleteState: async (of) => void kept.delete(of),
    },
  }));
}

async function ask(step) {
  const name = step.client ?? 'main';
  const payer = await client(name);
  switch (step.do) {
    case 'forget': // a payer that lost everything it knew
      delete clients[name];
      return {};
    case 'health':
      return { health: await payer.healthCheck() };
    case 'recover':
      return { recovered: await payer.recoverFromService() };
  }
  if (step.tools) {
    const { tools } = await payer.listTools();
    const named = tools.map((tool) => [tool.name, Object.keys(tool.inputSchema.properties)]);
    return { tools: tools.map((tool) => tool.name), arguments: Object.fromEntries(named) };
  }
  return await payer.call(step.tool, step.arguments);
}

async function told(step) {
  try {
    return await ask(step);
  } catch (error) {
    return { error: String(error.message ?? error), code: error.code, status: error.httpStatus };
  }
}

const happened = [];
for (const step of scenario.steps) happened.push(await told(step));
const plain = (_, value) => (typeof value === 'bigint' ? value.toString() : value);
process.stdout.write(`\n@@${JSON.stringify(happened, plain)}\n`, () => process.exit(0));
