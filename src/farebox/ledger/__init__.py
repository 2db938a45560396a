"""The double-entry ledger: accounts, transfers, holds, and the units of work that change them.

Promises: every movement is balanced and exact; a unit happens whole or leaves no trace; the same
unit id never happens twice. Never: I/O of its own (`store.py` is the port), money made or lost by
rounding, a balance that is not the replay of its transfers.
"""
