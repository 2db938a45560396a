"""Payment channels on EVM chains, backed by a small contract of ours: `FareboxChannels.sol`.

Promises: a voucher is one EIP-712 signature in the 64 bytes of the wire; nothing that a
reorganisation may take back is ever relied on; a claim that was sent is followed to its end, and
counts once the contract itself says so, deep enough.
Never: a key of its own (transactions are the outbox's), a posting.

`reading` asks the contract, `payee` and `payer` are the ports of `farebox.channels.chain`.
"""

from __future__ import annotations

from farebox.rails.evm.channels.contract import CHALLENGE_S, ETHER
from farebox.rails.evm.channels.names import account_did, did_address
from farebox.rails.evm.channels.payee import BatchPolicy, EvmPayee
from farebox.rails.evm.channels.payer import EvmPayer
from farebox.rails.evm.channels.reading import ChannelReader, ChannelTerms

__all__ = [
    "CHALLENGE_S",
    "ETHER",
    "BatchPolicy",
    "ChannelReader",
    "ChannelTerms",
    "EvmPayee",
    "EvmPayer",
    "account_did",
    "did_address",
]
