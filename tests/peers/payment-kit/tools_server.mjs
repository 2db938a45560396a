// payment-kit's own sale of MCP tools, on loopback. Its starter cannot make a session with the
// fastmcp that npm installs beside it, so the MCP SDK's own server carries the calls to the kit.
import { createRequire } from 'node:module';
import { express, fixChain, identity, kit, signer } from './chain.mjs';

const require = createRequire(process.env.PAYMENT_KIT_HOME + '/');
const { Server } = require('@modelcontextprotocol/sdk/server/index.js');
const transports = require('@modelcontextprotocol/sdk/server/streamableHttp.js');
const { CallToolRequestSchema, ListToolsRequestSchema } = require('@modelcontextprotocol/sdk/types.js');
const settings = JSON.parse(process.argv[2]);
fixChain(settings.chain);

const payments = await kit.createMcpPaymentKit({
  serviceId: 'tools',
  signer: await signer(settings.key),
  rpcUrl: 'http://127.0.0.1:1',
  network: 'local',
});
// Registered after the kit has registered its own: the payer's document is known without a chain.
identity.VDRRegistry.getInstance().registerVDR({
  getMethod: () => 'rooch',
  resolve: async (did) => settings.documents[did] ?? null,
});
const perToken = { type: 'PerToken', unitPricePicoUSD: '20000000' };
payments.register('add', { pricing: '1000000000' }, async ({ a, b }) => a + b);
payments.register('write', { pricing: perToken }, async ({ text }) => ({ text, __usage: 120 }));
payments.register('free', { pricing: '0' }, async () => 'free');

const app = express();
app.use(express.json());
app.get('/ready', (_, response) => response.json({}));
app.post('/mcp', async (request, response) => {
  const server = new Server({ name: 'tools', version: '1' }, { capabilities: { tools: {} } });
  server.setRequestHandler(ListToolsRequestSchema, async () => ({
    tools: payments.listTools().map((name) => ({ name, inputSchema: { type: 'object' } })),
  }));
  server.setRequestHandler(CallToolRequestSchema, async ({ params }) =>
    payments.invoke(params.name, params.arguments),
  );
  const transport = new transports.StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
  await server.connect(transport);
  await transport.handleRequest(request, response, request.body);
});
app.listen(settings.port, '127.0.0.1');
