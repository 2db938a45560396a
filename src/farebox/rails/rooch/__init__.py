"""Payment channels on Rooch: the contract `0x3::payment_channel`, over a node's JSON-RPC.

Promises: what a node tells is read whole and within bounds, or refused; a claim is sent only where
the chain has not paid it yet, and repeated until it tells so.
Never: a private key in a log or an error; a claim taken for refused that may still be paid.

Not in `farebox serve`: for programs that use `farebox.channels`. Its bytes are those of Rooch's own
SDK; it was run against a play node, never against a Rooch node.
"""

from __future__ import annotations

from farebox.rails.rooch.contract import RoochContract
from farebox.rails.rooch.rpc import RoochRpc, open_rooch_session

__all__ = ["RoochContract", "RoochRpc", "open_rooch_session"]
