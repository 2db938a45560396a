// Drives payment-kit's own HTTP client: a scenario on stdin, what happened as one line after "@@".
import { fixChain, kit, signer } from './chain.mjs';

const scenario = JSON.parse(await new Response(process.stdin).text());
fixChain(scenario.chain);

const stores = {};
const clients = {};

async function client(name) {
  if (clients[name]) return clients[name];
  const key = scenario.keys[name.split('/')[0]];
  const kept = (stores[name] ??= new Map());
  return (clients[name] = new kit.PaymentChannelHttpClient({
    baseUrl: scenario.baseUrl,
    chainConfig: { chain: 'rooch', rpcUrl: 'http://127.0.0.1:1' },
    signer: await signer(key),
    keyId: key.keyId,
    maxAmount: BigInt(scenario.maxAmount ?? '500000000000'),
    timeoutMs: 10000,
    mappingStore: {
      getState: async (of) => kept.get(of),
      setState: async (of, state) => void kept.set(of, state),
      deleteState: async (of) => void kept.delete(of),
    },
  }));
}

async function ask(step) {
  const name = step.client ?? 'main';
  switch (step.do) {
    case 'forget': // a payer that lost everything it knew
      delete clients[name];
      delete stores[name];
      return {};
    case 'restart':
      delete clients[name];
      return {};
    case 'health':
      return { health: await (await client(name)).healthCheck() };
    case 'recover':
      return { recovered: await (await client(name)).recoverFromService() };
    case 'pending':
      return { pending: (await client(name)).getPendingSubRAV() };
    case 'status':
      return { told: await kit.createAdminClient(await client(name)).getSystemStatus() };
    case 'claim':
      return { told: await kit.createAdminClient(await client(name)).triggerClaim(step.of) };
  }
  const init = step.body && { body: JSON.stringify(step.body), headers: JSON_BODY };
  const handle = await (await client(name)).requestWithPayment(step.method ?? 'GET', step.path, init);
  const response = await handle.response;
  const body = await response.text();
  const payment = await handle.payment;
  return { status: response.status, body, payment };
}

const JSON_BODY = { 'Content-Type': 'application/json' };

async function told(step) {
  try {
    return await ask(step);
  } catch (error) {
    return { error: String(error.message ?? error), code: error.code, status: error.httpStatus };
  }
}

const happened = [];
for (const step of scenario.steps) {
  happened.push(step.parallel ? await Promise.all(step.parallel.map(told)) : await told(step));
}
const plain = (_, value) => (typeof value === 'bigint' ? value.toString() : value);
process.stdout.write(`\n@@${JSON.stringify(happened, plain)}\n`, () => process.exit(0));
