"""A play mint in a process of its own: `python -m farebox.testing.mint --port 3338`."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn

from farebox.testing.mint.app import PlayMint
from farebox.wire.cashu.keysets import VERSION_2


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A Cashu mint of play money, with faults.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fee-ppk", type=int, default=0, help="per input, in thousandths")
    parser.add_argument("--unit", action="append", help="sat (default) or msat; may be repeated")
    parser.add_argument("--keyset-version", default=VERSION_2, choices=["00", "01"])
    parser.add_argument("--state", type=Path, help="file to go on from and to write to")
    parser.add_argument("--unpaid", action="store_true", help="invoices don't pay themselves")
    given = parser.parse_args()
    mint = PlayMint(
        url=f"http://{given.host}:{given.port}",
        units=given.unit or ["sat"],
        fee_ppk=given.fee_ppk,
        keyset_version=given.keyset_version,
        state=given.state,
        invoices_pay_themselves=not given.unpaid,
    )
    uvicorn.run(mint, host=given.host, port=given.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
