// payment-kit's own contract class against a node: what it reads, and a claim that it signs.
import { kit, signer } from './chain.mjs';

const scenario = JSON.parse(await new Response(process.stdin).text());
const { channelId, fragment, assetId, payerDid, signed } = scenario;
const contract = new kit.RoochPaymentChannelContract({ rpcUrl: scenario.url });
const sub = { channelId, vmIdFragment: fragment };
const { subRav, signature } = signed;

const happened = [
  await contract.getChannelStatus({ channelId }),
  await contract.getSubChannel(sub),
  await contract.getHubBalance(payerDid, assetId),
];
await contract.claimFromChannel({
  signedSubRAV: {
    subRav: {
      ...subRav,
      accumulatedAmount: BigInt(subRav.accumulatedAmount),
      nonce: BigInt(subRav.nonce),
    },
    signature: new Uint8Array(Buffer.from(signature.slice(1), 'base64url')),
  },
  signer: await signer(scenario.key),
});
happened.push(await contract.getSubChannel(sub));
const plain = (_, value) => (typeof value === 'bigint' ? value.toString() : value);
process.stdout.write(`\n@@${JSON.stringify(happened, plain)}\n`, () => process.exit(0));
