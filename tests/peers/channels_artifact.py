"""Compiles the channel contract: `python -m tests.peers.channels_artifact` writes its artifact."""

from __future__ import annotations

import json
from pathlib import Path

from tests.peers.anvil import compile_contract

ROOM = Path(__file__).parents[2] / "src" / "farebox" / "rails" / "evm" / "channels"
SOURCE = ROOM / "FareboxChannels.sol"
ARTIFACT = ROOM / "FareboxChannels.json"


def compiled() -> str:
    """The artifact as text. Raises PeerUnavailable."""
    abi, bytecode = compile_contract(SOURCE)
    lines = [json.dumps(entry, separators=(",", ":"), sort_keys=True) for entry in abi]
    listed = ",\n".join(lines)
    return f'{{"abi":[\n{listed}\n],\n"bytecode":"{bytecode}"}}\n'


if __name__ == "__main__":
    ARTIFACT.write_text(compiled())
