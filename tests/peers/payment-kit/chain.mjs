// A chain for payment-kit that is no chain: fixed answers in place of the contract's calls.
// Set on the prototype before anything is constructed; payment-kit itself stays as published.
import { createRequire } from 'node:module';

const require = createRequire(process.env.PAYMENT_KIT_HOME + '/');
export const kit = require('@nuwa-ai/payment-kit');
export const identity = require('@nuwa-ai/identity-kit');
export const express = require('express');

const RGAS = `0x${'3'.padStart(64, '0')}::gas_coin::RGas`;

export function fixChain({ channelId, payerDid, payeeDid, hubBalance, claims, chainId, assetId }) {
  const events = [];
  const ASSET = assetId ?? RGAS;
  const channel = { channelId, payerDid, payeeDid, assetId: ASSET, epoch: 0n, status: 'active' };
  Object.assign(kit.RoochPaymentChannelContract.prototype, {
    openChannelWithSubChannel: async () => ({ channelId, txHash: '0x1', blockHeight: 0n, events }),
    authorizeSubChannel: async () => ({ txHash: '0x2', blockHeight: 0n, events }),
    getChannelStatus: async (asked) => {
      if (asked.channelId !== channelId) throw new Error(`Channel ${asked.channelId} not found`);
      return channel;
    },
    getSubChannel: async (asked) => ({
      vmIdFragment: asked.vmIdFragment,
      epoch: 0n,
      lastClaimedAmount: 0n,
      lastConfirmedNonce: 0n,
    }),
    getChainId: async () => BigInt(chainId ?? 4),
    getAssetPrice: async () => 100n,
    getAssetInfo: async () => ({ assetId: ASSET, symbol: 'RGas', decimals: 8 }),
    getHubBalance: async () => ({ balance: BigInt(hubBalance ?? '1000000000000') }),
    claimFromChannel: async (asked) => {
      claims?.push(asked);
      return { txHash: '0x3', blockHeight: 0n, claimedAmount: 0n };
    },
  });
}

export async function signer({ did, keyId, keyType, publicKeyMultibase, privateKeyMultibase }) {
  const keys = new identity.KeyManager({ did });
  await keys.importKey({ keyId, keyType, publicKeyMultibase, privateKeyMultibase });
  return keys;
}
