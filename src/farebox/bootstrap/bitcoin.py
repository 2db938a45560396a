"""A Bitcoin wallet and its chain source from the settings; its library is loaded only for that."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from farebox.clock import Clock, SystemClock
from farebox.errors import InvalidCredential, InvalidInput, InvalidSettings
from farebox.ledger.service import Ledger
from farebox.payments.operations import Operations
from farebox.payments.rail import Limits
from farebox.rails.bitcoin import BitcoinConfig, Depth
from farebox.rails.web import Breaker
from farebox.settings import BitcoinSettings, BitcoinSource, Settings
from farebox.settings.bitcoin import peers_of

if TYPE_CHECKING:
    from farebox.rails.bitcoin.chain import ChainSource
    from farebox.rails.bitcoin.keys import WalletKeys
    from farebox.rails.bitcoin.method import BitcoinMethod
    from farebox.rails.bitcoin.wallet import Wallet

Later = Callable[[Callable[[], Awaitable[None]]], object]
_KVB = 1_000


def open_bitcoin(
    settings: Settings, ledger: Ledger, operations: Operations, later: Later
) -> BitcoinMethod | None:
    """The rail, or None where no source is named. `later` is told what to do when all ends.

    Raises InvalidSettings.
    """
    found = settings.bitcoin
    if found.url is None:
        return None
    wallet = _wallet_of(settings, ledger.clock)
    later(wallet.close)
    from farebox.rails.bitcoin.method import BitcoinMethod

    return BitcoinMethod(config_of(found), wallet, ledger, operations)


async def examine_bitcoin(settings: Settings) -> tuple[str, str]:
    """What is wrong with the source, "" for nothing, and who it is.

    Raises InvalidSettings, RailUnavailable.
    """
    wallet = _wallet_of(settings, SystemClock())
    from farebox.rails.bitcoin.method import fault_of

    try:
        info = await wallet.info()
    finally:
        await wallet.close()
    kind = "signs" if wallet.keys.can_sign else "only watches"
    told = f"{info.software}, block {info.tip.height}; the wallet {kind}"
    return fault_of(info, config_of(settings.bitcoin)), told


def config_of(found: BitcoinSettings) -> BitcoinConfig:
    """The operator's terms as the rail takes them."""
    return BitcoinConfig(
        name=found.name,
        network=found.network.value,
        start_height=found.start_height,
        ceiling_msat=found.ceiling_msat,
        deposits=Limits(found.deposit_min_msat, found.deposit_max_msat),
        payouts=Limits(found.payout_min_msat, found.payout_max_msat),
        deposit_expiry_s=found.deposit_expiry_s,
        depths=tuple(Depth(from_sat, needed) for from_sat, needed in found.confirmations),
        payout_confirmations=found.payout_confirmations,
        batch_window_s=found.batch_window_s,
        batch_most=found.batch_most,
        fee_blocks=found.fee_blocks,
        fee_rate_default=found.fee_rate * _KVB,
        fee_rate_max=found.fee_rate_max * _KVB,
        bump_after_blocks=found.bump_after_blocks,
        round_s=found.round_s,
        allowed=found.allowed,
    )


def _wallet_of(settings: Settings, clock: Clock) -> Wallet:
    try:
        from farebox.rails.bitcoin.keys import WalletKeys
        from farebox.rails.bitcoin.wallet import Wallet
    except ImportError:
        allowed = "`pip install 'farebox[bitcoin]'` first, or leave it out"
        raise InvalidSettings("bitcoin.url", settings.bitcoin.url, allowed) from None
    found = settings.bitcoin
    text = found.key.reveal() if found.key is not None else found.watch or ""
    named = "bitcoin.key" if found.key is not None else "bitcoin.watch"
    try:
        keys = WalletKeys(text, found.network.value)
    except InvalidInput as error:
        raise InvalidSettings(named, "something else (hidden)", str(error)) from None
    if keys.can_sign != (found.key is not None):
        raise InvalidSettings(named, "a key of the other kind", "private for key, public for watch")
    wallet = Wallet(keys, lambda: _source_of(settings, keys), Breaker(clock, who="the chain"))
    for address in found.allowed:
        try:
            wallet.script(address)
        except InvalidCredential as error:
            raise InvalidSettings("bitcoin.allowed", address, str(error)) from None
    return wallet


def _source_of(settings: Settings, keys: WalletKeys) -> ChainSource:
    found = settings.bitcoin
    assert found.url is not None
    match found.source:
        case BitcoinSource.CORE:
            from farebox.rails.bitcoin.core import Core

            login = found.login.reveal().strip() if found.login else ""
            file = settings.data_dir / f"bitcoin-{found.name}.scan"
            return Core(found.url, login, keys, file=file, tls=_tls(found))
        case BitcoinSource.ELECTRUM:
            from farebox.rails.bitcoin.electrum import Electrum

            return Electrum(found.url)
        case BitcoinSource.ESPLORA:
            from farebox.rails.bitcoin.esplora import Esplora

            return Esplora(found.url)
        case BitcoinSource.FILTERS:
            from farebox.rails.bitcoin.chain import Block
            from farebox.rails.bitcoin.filters import Filters
            from farebox.rails.bitcoin.peers import PeerAddress

            peers = [PeerAddress(host, port) for host, port in peers_of(found.url)]
            file = settings.data_dir / f"bitcoin-{found.name}.sqlite"
            first = None
            if found.start_hash and found.start_height:
                first = Block(found.start_height - 1, found.start_hash)
            return Filters(peers, keys, file=file, first=first)


def _tls(found: BitcoinSettings) -> ssl.SSLContext | None:
    if found.certificate is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(found.certificate))
    except (OSError, ssl.SSLError):
        read = str(found.certificate)
        raise InvalidSettings("bitcoin.certificate", read, "a certificate in PEM") from None
