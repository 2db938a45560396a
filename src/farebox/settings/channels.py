"""Payment channels as the operator decides about them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from farebox.errors import InvalidCredential
from farebox.settings.fields import optional, setting
from farebox.settings.values import AMOUNT_MSAT, ASSET, NAME, Kind, Where, choice, integer, many
from farebox.wire.subrav.keys import VerificationKey

_DAY_S = 86_400


def _did_key(raw: object, _: Where) -> str:
    if not isinstance(raw, str):
        raise TypeError
    try:
        VerificationKey.from_did_key(raw)
    except InvalidCredential:
        raise ValueError from None
    return raw


_ADMIN = Kind("the did:key:z… of an Ed25519, secp256k1 or P-256 key", _did_key, textual=True)


class ChannelChain(enum.Enum):
    """Where channels are backed."""

    NONE = "none"
    LEDGER = "ledger"
    EVM = "evm"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelsSettings:
    """Payers of thousands of requests, who sign a voucher for each."""

    chain: ChannelChain = setting(
        choice(ChannelChain),
        "Where collateral is locked: on the balance of the payer's own account here, in a contract "
        "on an EVM chain, or nowhere: then no channel pays.",
        "ledger",
    )
    evm: str | None = optional(
        NAME, 'With chain = "evm": the [[evm]] chain whose contract locks it, by its name.', "base"
    )
    asset: str = setting(
        ASSET, "… and what is locked there, and claimed: the chain's coin, or a token.", "USDC"
    )
    claim_gas_percent: int = setting(
        integer(1, 100),
        "… and the most that the gas of a claim may cost of what it brings; until then vouchers "
        "wait for more, or for the channel to close.",
        10,
    )
    name: str = setting(
        NAME, "Who is paid: payers know this house as did:farebox:<name>. Never change it.", "house"
    )
    admins: tuple[str, ...] = setting(
        many(_ADMIN),
        "Who may see how claims go, and trigger them, at /payment-channel/admin/…: these keys, "
        "which sign what they ask. Left empty, nobody.",
        [],
    )
    request_max_msat: int = setting(
        AMOUNT_MSAT,
        "The most that one request may cost: each is served before it is paid, by the voucher that "
        "comes with the next.",
        "10000 sat",
        key="request_max",
    )
    exposure_max_msat: int = setting(
        AMOUNT_MSAT,
        "The most that one payer's vouchers may be worth before they are claimed, however much "
        "collateral there is.",
        "100000 sat",
        key="exposure_max",
    )
    claim_least_msat: int = setting(
        AMOUNT_MSAT,
        "Less than this is not worth a claim, until the channel closes; a collateral with less "
        "left lets nobody begin.",
        "1 sat",
        key="claim_least",
    )
    claim_at_msat: int = setting(
        AMOUNT_MSAT, "Vouchers worth as much are claimed at once.", "1000 sat", key="claim_at"
    )
    claim_age_s: int = setting(
        integer(1, 365 * _DAY_S), "The longest that a voucher waits for its claim.", _DAY_S
    )
    claim_idle_s: int = setting(
        integer(1, 365 * _DAY_S), "How long a payer asks for nothing before it is claimed.", 3600
    )
    proposal_expiry_s: int = setting(
        integer(60, 365 * _DAY_S),
        "How long a request may stay unpaid before it is written off. Its payer is asked for it "
        "all the same, and served nothing before.",
        1800,
    )
    challenge_s: int = setting(
        integer(30, 30 * _DAY_S),
        "How long a channel goes on after its payer has closed it, for the last claim; then the "
        "rest goes back by itself. In a contract it is a day.",
        600,
    )
