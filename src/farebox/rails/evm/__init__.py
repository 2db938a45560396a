"""EVM chains: deposits and payouts of tokens and of the chain's coin.

Promises: what arrives is credited once, a nonce is used once, and every transaction is followed to
its end; what would cost more than the cap waits. Never: a key or a node's address in an error or a
log.
"""

import contextlib
import sys

# A library below it lets Python recurse a hundred times deeper for the whole process, and then a
# stranger's deeply nested JSON overflows the C stack instead of being refused.
_RECURSION_MAX = sys.getrecursionlimit()
with contextlib.suppress(ImportError):  # without the extra `evm` the rows alone can be read
    import eth_account  # noqa: F401

sys.setrecursionlimit(_RECURSION_MAX)
