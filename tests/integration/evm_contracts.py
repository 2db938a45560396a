"""What the sources of our contracts compile to: `python -m tests.integration.evm_contracts`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from farebox.rails.evm.contracts import ABIS, ARTIFACTS
from tests.peers.anvil import Anvil, compile_contract


def compiled(anvil: Anvil) -> str:
    """The text of `artifacts.json`: a contract's runtime is what its creation answers with."""
    made = {}
    for source in sorted(ARTIFACTS.parent.glob("*.sol")):
        _, creation = compile_contract(source)
        runtime = anvil.rpc("eth_call", {"data": creation}, "latest")
        made[source.stem] = {"creation": creation, "runtime": runtime}
    return json.dumps(made, indent=1) + "\n"


def interfaces() -> str:
    """The text of `abis.json`: how others call what they are to call themselves."""
    source = ARTIFACTS.with_name("FareboxChannels.sol")
    abi, _ = compile_contract(source)
    lines = ",\n".join(f"  {json.dumps(entry, sort_keys=True)}" for entry in abi)
    return f'{{"{source.stem}": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    ABIS.write_text(interfaces())
    with tempfile.TemporaryDirectory() as folder:
        chain = Anvil(Path(folder))
        chain.start()
        try:
            ARTIFACTS.write_text(compiled(chain))
        finally:
            chain.stop()
