"""EVM chains: payouts of tokens and ether, alone and together.

Promises: a nonce is used once, and every transaction is followed to its end; what would cost more
than the cap waits. Never: a key or a node's address in an error or a log.
"""

import sys

# A library below it lets Python recurse a hundred times deeper for the whole process, and then a
# stranger's deeply nested JSON overflows the C stack instead of being refused.
_RECURSION_MAX = sys.getrecursionlimit()
import eth_account  # noqa: E402, F401

sys.setrecursionlimit(_RECURSION_MAX)
