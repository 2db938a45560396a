"""A payment channel of the caller's own: opened from the account, topped up, closed."""

from __future__ import annotations

import msgspec

from farebox.api.caller import identify
from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document, read_json
from farebox.api.once import Told, once, settled
from farebox.api.problems import bad_request, not_found
from farebox.channels.ledger_desk import LedgerDesk, OwnChannel
from farebox.clock import iso
from farebox.errors import InvalidCredential, RailRejected
from farebox.paywall.dialects import refusal, sentence
from farebox.paywall.model import Answer
from farebox.wire.subrav.keys import KeyType, VerificationKey
from farebox.wire.subrav.model import check_fragment

_AMOUNT_END = 2**63


class ChannelBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is locked for the channel, and which key may sign. An `amount_msat` of 0 lets one
    more key sign; `public_key` is written as in a DID document (`z…`)."""

    amount_msat: int
    fragment: str
    key_type: KeyType
    public_key: str


async def fund(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/channels`: open the caller's channel, top it up, or let one more key sign."""
    caller = await identify(context, incoming)
    if isinstance(caller, Answer):
        return caller
    desk = context.channels
    if desk is None:
        return _NO_CHANNELS
    asked = read_json(incoming, ChannelBody)
    if isinstance(asked, Answer):
        return asked
    if not 0 <= asked.amount_msat < _AMOUNT_END:
        return bad_request("amount_invalid", "amount_msat is a whole number of msat.")
    try:
        fragment = check_fragment(asked.fragment)
        key = VerificationKey.from_multibase(asked.key_type, asked.public_key)
    except InvalidCredential as error:
        return bad_request("key_invalid", sentence(str(error)))

    async def act(operation_id: str) -> Told:
        try:
            own = await desk.fund(caller.account, asked.amount_msat, fragment, key, operation_id)
        except RailRejected as error:
            return settled(refusal("channel_refused", sentence(str(error)), {}))
        return settled(document(_document(desk, own), 201))

    return await once(context, incoming, caller.account, act)


async def show(context: ApiContext, incoming: Incoming) -> Answer:
    """`GET /v1/channels`: the caller's channel."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    if context.channels is None:
        return _NO_CHANNELS
    own = await context.channels.show(caller.account)
    return _NONE if own is None else document(_document(context.channels, own))


async def close(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/channels/close`: no voucher is taken from now on; the rest comes back by itself
    when the challenge period is over."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    if context.channels is None:
        return _NO_CHANNELS
    if await context.channels.show(caller.account) is None:
        return _NONE
    try:
        own = await context.channels.close(caller.account)
    except RailRejected as error:
        return refusal("channel_refused", sentence(str(error)), {})
    return document(_document(context.channels, own), 202)


def _document(desk: LedgerDesk, own: OwnChannel) -> dict[str, object]:
    info, channel = own.info, own.channel
    return {
        "channel": info.channel_id,
        "payer_did": info.payer_did,
        "payee_did": info.payee_did,
        "chain_id": desk.chain_id,
        "asset": info.asset_id,
        "epoch": info.epoch,
        "status": info.status.value,
        "closes_at": iso(channel.closes_at) if channel.closes_at else None,
        "collateral_msat": own.left,
        "keys": [
            {
                "fragment": fragment,
                "key_type": sub.key_type.value,
                "public_key": VerificationKey(sub.key_type, sub.key).multibase,
                "claimed_msat": sub.claimed,
                "nonce": sub.nonce,
            }
            for fragment, sub in channel.sub_channels.items()
        ],
    }


_NO_CHANNELS = not_found("channels_unavailable", "No channel pays here.")
_NONE = not_found("channel_unknown", "This account has no channel; open one with POST.")
