// payment-kit's own server with the routes and prices of its end-to-end tests, on loopback.
import { express, fixChain, identity, kit, signer } from './chain.mjs';

const settings = JSON.parse(process.argv[2]);
fixChain(settings.chain);

const app = express();
app.use(express.json());
app.get('/ready', (_, response) => response.json({}));
const payments = await kit.createExpressPaymentKit({
  serviceId: 'echo-service',
  signer: await signer(settings.key),
  rpcUrl: 'http://127.0.0.1:1',
  network: 'local',
  defaultAssetId: '0x3::gas_coin::RGas',
  defaultPricePicoUSD: '500000000',
});
// Registered after the kit has registered its own: the payer's document is known without a chain.
identity.VDRRegistry.getInstance().registerVDR({
  getMethod: () => 'rooch',
  resolve: async (did) => settings.documents[did] ?? null,
});
payments.get('/echo', { pricing: '1000000000' }, (request, response) => {
  response.json({ echo: request.query.q ?? null });
});
payments.post('/process', { pricing: { type: 'FinalCost' } }, (request, response) => {
  response.locals.usage = 10000000000;
  response.json({ processed: request.body });
});
const perToken = { type: 'PerToken', unitPricePicoUSD: '20000000' };
payments.post('/chat/completions', { pricing: perToken }, (request, response) => {
  response.locals.usage = 120;
  if (!request.body.stream) return response.json({ usage: { total_tokens: 120 } });
  response.setHeader('Content-Type', 'text/event-stream');
  response.write('data: {"t":0}\n\n');
  response.write('data: {"t":1}\n\n');
  return response.end();
});
payments.get('/free', { pricing: '0' }, (_, response) => response.json({ free: true }));
app.use(payments.router);
app.listen(settings.port, '127.0.0.1');
