"""A gateway as `farebox serve` runs it, with keys that have money on them; for the benchmark.

    python -m benchmarks.paid_gateway UPSTREAM_URL PORT DATA_DIR PRICE [MINT_URL]

Prints one line per key when it listens. The book is in DATA_DIR, or in FAREBOX_DATABASE.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import uvicorn
import uvloop

from farebox.bootstrap import Farebox
from farebox.cli.listener import listening, server_config
from farebox.cli.serve import quieten_collector
from farebox.identity.keys import KeyTerms, NewKey, new_account
from farebox.ids import new_id
from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.settings import load_settings

_KEYS = 64
_FUNDS_MSAT = 10**15


async def funded_key(house: Farebox) -> str:
    """A key to a fresh account with more than a benchmark spends."""
    account = new_account()
    steps = (
        Open("custody:benchmark", "BTC", Kind.CUSTODY),
        Open(account, "BTC", Kind.CUSTOMER),
        Transfer("custody:benchmark", account, _FUNDS_MSAT, "deposit"),
    )
    outcome = await house.store.commit(Unit(new_id("fund"), steps))
    made = await house.keys.create(account, KeyTerms())
    assert isinstance(outcome, Applied)
    assert isinstance(made, NewKey)
    return made.secret


async def serve(upstream_url: str, port: int, data_dir: Path, price: str, mint: str) -> None:
    """Serve until the process is stopped."""
    given: dict[str, object] = {
        "data_dir": str(data_dir),
        "upstream": [{"urls": [upstream_url]}],
        "mint": [{"url": mint, "ceiling": "100000000 sat", "offline_max": "100000000 sat"}],
        "price": [{"price": price}],
        "gateway.listen": f"127.0.0.1:{port}",
    }
    where = {name: os.environ[name] for name in ("FAREBOX_DATABASE",) if name in os.environ}
    async with Farebox(
        load_settings(None, where, given), b"benchmark only, not a secret" + b".." * 2
    ) as house:
        for _ in range(_KEYS):
            print(await funded_key(house), flush=True)
        print("ready", flush=True)
        quieten_collector()
        with listening(house.settings.gateway.listen, "gateway.listen") as listener:
            header_bytes_max = house.settings.gateway.header_bytes_max
            config = server_config(house.app, header_bytes_max, stop_timeout_s=1)
            await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    url, port_, data, price_, *mint_ = sys.argv[1:]
    mint_url = mint_[0] if mint_ else "https://mint.example"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(url, int(port_), Path(data), price_, mint_url))
