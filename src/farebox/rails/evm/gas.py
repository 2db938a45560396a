"""How much gas a transaction needs, and what a chain takes besides for the chain below it."""

from __future__ import annotations

import enum

from farebox.rails.evm.contracts import answered, calldata
from farebox.rails.evm.fees import Fees
from farebox.rails.evm.outbox import Call
from farebox.rails.evm.sending import Sending

#: A transfer of coin to an account.
PLAIN_GAS = 21_000
_ORACLE = "0x420000000000000000000000000000000000000F"
_NODE_INTERFACE = "0x00000000000000000000000000000000000000C8"


class L1Fee(enum.StrEnum):
    """How a chain charges for what it writes to the chain below."""

    NONE = "none"
    OP = "op"  # beside the gas: GasPriceOracle.getL1Fee
    ARBITRUM = "arbitrum"  # as gas: NodeInterface.gasEstimateL1Component


class Gas:
    """Asks one chain. All raise RailUnavailable, RailRejected."""

    def __init__(self, sending: Sending, l1: L1Fee) -> None:
        self._sending = sending
        self._chain = sending.chain
        self._l1 = l1

    async def limit(self, sender: str, call: Call) -> int:
        """The gas that a call uses now; RailRejected where it would revert."""
        gas = await self._chain.gas(sender, call)
        if self._l1 is not L1Fee.ARBITRUM:
            return gas
        # Its own estimate has this in it; a node that leaves it out must not make it too little.
        signature = "gasEstimateL1Component(address,bool,bytes)"
        data = calldata(signature, call.to, False, bytes.fromhex(call.data[2:]))
        told = await self._chain.run(sender, Call(_NODE_INTERFACE, 0, data))
        return max(gas, PLAIN_GAS + answered(("uint64", "uint256", "uint256"), told)[0])

    async def l1_fee(self, sender: str, call: Call) -> int:
        """Wei beside the gas, by the size of what would be signed."""
        if self._l1 is not L1Fee.OP:
            return 0
        _, raw = self._sending.keys.sign(sender, self._sending.terms.chain_id, 0, call, Fees(1, 1))
        data = calldata("getL1Fee(bytes)", bytes.fromhex(raw[2:]))
        return answered(("uint256",), await self._chain.run(sender, Call(_ORACLE, 0, data)))[0]
