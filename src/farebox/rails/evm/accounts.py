"""The library that signs for EVM chains, without what comes with it.

A library below it lets Python recurse a hundred times deeper for the whole process, and then a
stranger's deeply nested JSON overflows the C stack instead of being refused. It takes half a second
to load as well: so only what signs imports it.
"""

from __future__ import annotations

import sys

#: At most this, in case somebody has loaded that library before us.
_SAFE_DEPTH = 10_000
_RECURSION_MAX = min(sys.getrecursionlimit(), _SAFE_DEPTH)

from eth_account import Account  # noqa: E402 - between the two
from eth_account.hdaccount import key_from_seed, seed_from_mnemonic  # noqa: E402
from eth_account.messages import encode_defunct  # noqa: E402
from eth_account.signers.local import LocalAccount  # noqa: E402

sys.setrecursionlimit(_RECURSION_MAX)

__all__ = ["Account", "LocalAccount", "encode_defunct", "key_from_seed", "seed_from_mnemonic"]
