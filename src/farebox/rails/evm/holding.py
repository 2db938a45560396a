"""What lies at our addresses of one chain, by its node: to be held against the books."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import structlog

from farebox.errors import RailRejected
from farebox.ledger.service import Ledger
from farebox.payments.rail import Holding
from farebox.rails.evm.config import EvmConfig
from farebox.rails.evm.contracts import answered, calldata
from farebox.rails.evm.outbox import custody_of
from farebox.rails.evm.records import ADDRESS, ARRIVAL, Purse
from farebox.rails.evm.rpc import Data, Quantity, Rpc

_log = structlog.get_logger("farebox.evm")

_PAGE = 500
#: Of so many addresses that were not swept each can be asked about; of more nothing is told.
_UNSWEPT_MAX = 2_000


async def holdings_of(
    config: EvmConfig, hot: Collection[str], rpc: Rpc, ledger: Ledger
) -> Sequence[Holding]:
    """All of each asset after one block: at `hot` addresses, and at deposit addresses where some
    arrived that is not swept yet. A token that does not tell is left out, and so is the coin that a
    sweep has left beside it for its gas: there may be a million such addresses.

    Raises RailUnavailable, RailRejected.
    """
    unswept = await _unswept(config.name, ledger)
    if unswept is None:
        return ()
    height = hex(await rpc.call(Quantity, "eth_blockNumber"))
    found = []
    for one in config.assets:
        code = one.asset.code
        places = sorted({*hot, *unswept.get(code, ())})
        try:
            amount = await _lies_at(places, one.token, height, rpc)
        except (RailRejected, ValueError) as error:
            if not one.token:
                raise
            _log.warning("evm.not_told", chain=config.name, asset=code, reason=str(error))
            continue
        found.append(Holding(custody_of(config.name, code), code, amount))
    return found


async def _unswept(chain: str, ledger: Ledger) -> dict[str, list[str]] | None:
    """The addresses of each asset that may have some of it; None: too many."""
    found: dict[str, list[str]] = {}
    where, after = {"chain": chain, "purse": Purse.HOLDS}, ""
    for _ in range(_UNSWEPT_MAX // _PAGE):
        page = await ledger.store.find(ADDRESS, where, after=after, limit=_PAGE)
        for _, row in page:
            arrivals = await ledger.store.find(ARRIVAL, {"address": row.value.address})
            for asset in {one.value.asset for _, one in arrivals}:
                found.setdefault(asset, []).append(row.value.address)
        if len(page) < _PAGE:
            return found
        after = page[-1][0]
    return None


async def _lies_at(places: Sequence[str], token: str, height: str, rpc: Rpc) -> int:
    if not token:
        told = await rpc.batch(Quantity, "eth_getBalance", [(one, height) for one in places])
        return sum(map(int, told))
    calls = [{"to": token, "data": calldata("balanceOf(address)", one)} for one in places]
    answers = await rpc.batch(Data, "eth_call", [(one, height) for one in calls])
    return sum(answered(("uint256",), one)[0] for one in answers)
