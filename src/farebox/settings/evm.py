"""EVM chains as the operator decides about them."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from farebox.settings.fields import optional, required, sections, setting
from farebox.settings.secrets import Secret
from farebox.settings.values import (
    FLAG,
    MEMO,
    NAME,
    SECRET,
    Kind,
    Where,
    choice,
    integer,
    many,
    seconds,
)

_DAY_S = 86_400
_CODE = re.compile("[A-Z][A-Z0-9.]{0,15}")
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,30})(\.[0-9]{1,18})?")
_DEPTH = re.compile(rf"([1-9][0-9]{{0,4}}|finalized) from ({_DECIMAL.pattern})")


class EvmChain(enum.Enum):
    """A public chain whose facts are known, or one of your own."""

    ETHEREUM = "ethereum"
    POLYGON = "polygon"
    ARBITRUM = "arbitrum"
    OPTIMISM = "optimism"
    BASE = "base"
    CUSTOM = "custom"


def _matching(pattern: re.Pattern[str], allowed: str) -> Kind[str]:
    def parse(raw: object, _: Where) -> str:
        if not isinstance(raw, str) or not pattern.fullmatch(raw):
            raise ValueError
        return raw

    return Kind(allowed, parse, textual=True)


ASSET_CODE = _matching(_CODE, "capital letters and digits, at most 16")
AMOUNT = _matching(_DECIMAL, 'an amount of the asset as text, such as "2.50"')
EVM_ADDRESS = _matching(re.compile("0x[0-9a-fA-F]{40}"), "0x and 40 hexadecimal digits")
DEPTH = _matching(_DEPTH, '"BLOCKS from AMOUNT", or "finalized from AMOUNT"')


@dataclass(frozen=True, slots=True, kw_only=True)
class EvmAssetSettings:
    """What is taken and paid on a chain, where it is not as usual."""

    asset: str = required(ASSET_CODE, "The asset's code; the chain's own coin has one too.", "USDC")
    contract: str | None = optional(
        EVM_ADDRESS,
        "The token's contract. Of a known token on a known chain, and of the coin, it is known.",
        "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48",
    )
    scale: int = setting(
        integer(0, 30), "How many decimals a token has that is not known. Never change it.", 18
    )
    deposit_min: str | None = optional(
        AMOUNT, "The least a deposit may be. Left out, 1; of ETH and WETH 0.001.", "1"
    )
    deposit_max: str | None = optional(
        AMOUNT, "The most a deposit may be. Left out, 10000; of ETH and WETH 5.", "10000"
    )
    payout_min: str | None = optional(
        AMOUNT, "The least that is paid out at once. Left out, as for deposits.", "1"
    )
    payout_max: str | None = optional(
        AMOUNT, "The most that is paid out at once. Left out, as for deposits.", "10000"
    )
    ceiling: str | None = optional(
        AMOUNT,
        "The most we are ready to hold of it on this chain. Left out, 100000; of ETH and WETH 50.",
        "100000",
    )
    confirmations: tuple[str, ...] = setting(
        many(DEPTH),
        "How many blocks an arrival waits for, by its amount, such as "
        '["6 from 0", "20 from 1000", "finalized from 20000"]. Left empty, the chain\'s usual '
        "number counts for all.",
        [],
    )
    keeps_part: bool = setting(
        FLAG,
        "The token keeps a part of each transfer: what arrives is read off balances. It can be "
        "deposited and not be paid out.",
        False,
    )
    domain: str | None = optional(
        MEMO,
        "The EIP-712 name of a token that takes signed transfers (EIP-3009). Known of USDC.",
        "USD Coin",
    )
    domain_version: str = setting(MEMO, "… and its version.", "2")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvmSettings:
    """A chain."""

    name: str = required(
        NAME,
        "What the way to pay is called, and the chain in the books. Never change it.",
        "base",
    )
    chain: EvmChain = setting(
        choice(EvmChain), "Which chain: of a known one, the rest need not be said.", "custom"
    )
    chain_id: int | None = optional(
        integer(1, 2**53), "The id of a chain of your own; a known one's is checked.", 31_337
    )
    block_s: float = setting(
        seconds(3600), "How often a custom chain has a block, about; so often it is looked at.", 2
    )
    coin: str = setting(ASSET_CODE, "The code of a custom chain's own coin, of 18 decimals.", "ETH")
    url: Secret = required(
        SECRET,
        "The JSON-RPC address of a node. One with a key in it is best kept out of this file.",
        "https://mainnet.base.org",
    )
    key: Secret = required(
        SECRET,
        "What payments out are signed with: a BIP-39 mnemonic of your own (m/44'/60'/0'/0/…), or "
        "private keys. These addresses need coin for gas.",
        {"file": "evm.key"},
    )
    senders: int = setting(
        integer(1, 64), "How many addresses of the mnemonic pay out, each 16 at a time.", 1
    )
    deposit_key: Secret | None = optional(
        SECRET,
        "Whose children the deposit addresses are: an extended key, or a mnemonic "
        "(m/44'/60'/1'/0/…). Left out, it is the mnemonic of `key`. Of an extended public key "
        "(xpub…) deposits are taken, and you sweep them elsewhere. It may serve several chains. "
        "With another one the addresses of this one are no longer watched.",
        {"file": "evm-deposits.key"},
    )
    assets: tuple[EvmAssetSettings, ...] = sections(
        EvmAssetSettings,
        "An asset on the chain above. Without any, the coin and every known token are taken.",
        key="asset",
    )
    deposit_expiry_s: int = setting(
        integer(600, 90 * _DAY_S), "How long a deposit's rate is kept.", _DAY_S
    )
    watch_days: int = setting(
        integer(1, 3650), "How long an address is watched after it was given out.", 90
    )
    traces: bool = setting(
        FLAG,
        "Whether coin that contracts pass on is found too, as many exchanges and smart wallets pay "
        "it. The node must have trace_block: Reth, Erigon, Nethermind and Besu do, few services.",
        False,
    )
    fee_cap_gwei: int = setting(
        integer(1, 1_000_000), "Gas that costs more is not bought: what is to leave waits.", 500
    )
    fee_margin_percent: int = setting(
        integer(0, 1000), "What a payment's receiver pays over what its gas costs now.", 25
    )
    send_confirmations: int = setting(
        integer(1, 10_000), "Blocks after which what we sent counts as done.", 3
    )
    batch_wait_s: int = setting(
        integer(0, _DAY_S),
        "How long a payment waits for others, to leave in one transaction where that costs less.",
        0,
    )
    pays_contracts: bool = setting(FLAG, "Whether contracts are paid too.", False)
    allowed: tuple[str, ...] = setting(
        many(EVM_ADDRESS), "Only these are paid. Left empty, everybody is.", []
    )
    treasury: str | None = optional(
        EVM_ADDRESS,
        "Where deposits are swept. Left out, to the senders: payments leave from there.",
        "0x000000000000000000000000000000000000dEaD",
    )
    sweep_gas_percent: int = setting(
        integer(1, 100),
        "An address is swept once its gas is at most so much of what lies there; a transfer that "
        "its payer has signed is taken by the same measure.",
        2,
    )
