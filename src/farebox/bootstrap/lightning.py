"""A Lightning node from the settings."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack

import aiohttp

from farebox.clock import Clock
from farebox.errors import InvalidSettings
from farebox.ledger.service import Ledger
from farebox.payments.rail import Limits
from farebox.rails.lightning import (
    Cln,
    LightningConfig,
    LightningMethod,
    LightningNode,
    Line,
    Lnbits,
    Lnd,
    open_node_session,
)
from farebox.rails.web import Breaker
from farebox.settings import LightningNodeKind, LightningSettings


async def open_lightning(
    found: LightningSettings,
    ledger: Ledger,
    guarded: aiohttp.ClientSession,
    closing: AsyncExitStack,
) -> LightningMethod | None:
    """The rail, or None where no node is named. Raises InvalidSettings."""
    if found.url is None:
        return None
    session = await closing.enter_async_context(open_node_session())
    node, breaker = node_of(found, session, ledger.clock)
    return LightningMethod(config_of(found), node, breaker, ledger, guarded)


def node_of(
    found: LightningSettings, session: aiohttp.ClientSession, clock: Clock
) -> tuple[LightningNode, Breaker]:
    """The node that the settings name, and the breaker before it. Raises InvalidSettings."""
    assert found.url is not None
    assert found.key is not None
    key = found.key.reveal().strip()
    if not key.isascii() or not key.isprintable():
        raise InvalidSettings("lightning.key", "a text (hidden)", "printable ASCII")
    header = {
        LightningNodeKind.LND: "Grpc-Metadata-macaroon",
        LightningNodeKind.CLN: "Rune",
        LightningNodeKind.LNBITS: "X-Api-Key",
    }[found.node]
    breaker = Breaker(clock, who="the node")
    line = Line(found.url, {header: key}, session, breaker, tls=_tls(found), call_s=found.timeout_s)
    match found.node:
        case LightningNodeKind.LND:
            return Lnd(line), breaker
        case LightningNodeKind.CLN:
            return Cln(line), breaker
        case LightningNodeKind.LNBITS:
            invoice_key = found.invoice_key.reveal().strip() if found.invoice_key else ""
            return Lnbits(line, invoice_key=invoice_key), breaker


def config_of(found: LightningSettings, *, allow_private: bool = False) -> LightningConfig:
    """The operator's terms as the rail takes them."""
    return LightningConfig(
        name=found.name,
        network=found.network.value,
        ceiling_msat=found.ceiling_msat,
        deposits=Limits(found.deposit_min_msat, found.deposit_max_msat),
        payouts=Limits(found.payout_min_msat, found.payout_max_msat),
        invoice_expiry_s=found.invoice_expiry_s,
        memo=found.memo,
        fee_base_msat=found.fee_base_msat,
        fee_ppm=found.fee_ppm,
        pay_timeout_s=found.pay_timeout_s,
        allowed=frozenset(one.lower() for one in found.allowed),
        allow_private=allow_private,
    )


def _tls(found: LightningSettings) -> ssl.SSLContext | None:
    if found.certificate is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(found.certificate))
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "not a certificate"
        read = f"{found.certificate} ({reason})"
        raise InvalidSettings("lightning.certificate", read, "a certificate in PEM") from None
