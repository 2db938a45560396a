"""What the channel contract says, as the port of `farebox.channels` has it.

Everything is read as it stood `confirmations` blocks ago: what a reorganisation may take back was
never there. So a channel counts once it is that deep, a claim is booked once it is, and a closing
is obeyed as many blocks late, which the challenge period has room for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from farebox.channels.chain import ChannelInfo, ChannelStatus, SubChannelInfo
from farebox.errors import InvalidCredential, RailRejected
from farebox.rails.evm.channels import contract as abi
from farebox.rails.evm.channels.contract import ChainChannel, ChainStatus, ChainSubChannel
from farebox.rails.evm.channels.names import account_did, did_address
from farebox.rails.evm.contracts import artifact
from farebox.rails.evm.rpc import Data, Quantity, Rpc
from farebox.wire.subrav.keys import KeyType, VerificationKey

_STATUSES = {
    ChainStatus.OPEN: ChannelStatus.ACTIVE,
    ChainStatus.CLOSING: ChannelStatus.CLOSING,
    ChainStatus.CLOSED: ChannelStatus.CLOSED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTerms:
    """The contract on one chain. `assets`: the token (0x…, lower case) of each asset code that is
    taken; ether's is `contract.ETHER`.
    """

    chain_id: int
    assets: Mapping[str, str]
    confirmations: int = 12
    contract: str = artifact("FareboxChannels").address.lower()
    codes: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", {token: code for code, token in self.assets.items()})

    @property
    def contract_bytes(self) -> bytes:
        """The contract's address as keys name it."""
        return bytes.fromhex(self.contract[2:])

    def token(self, asset_id: str) -> str:
        """The token of an asset. Raises InvalidCredential."""
        try:
            return self.assets[asset_id]
        except KeyError:
            raise InvalidCredential(f"channels are not backed by {asset_id} here") from None

    def channel_id(self, payer_did: str, payee_did: str, asset_id: str) -> str:
        """The one channel between two parties in one asset. Raises InvalidCredential."""
        payer, payee = (did_address(did, self.chain_id) for did in (payer_did, payee_did))
        return abi.channel_id(self.chain_id, self.contract, payer, payee, self.token(asset_id))


class ChannelReader:
    """Reads one contract. All methods raise RailUnavailable and RailRejected."""

    def __init__(self, rpc: Rpc, terms: ChannelTerms) -> None:
        self._rpc = rpc
        self.terms = terms

    async def check(self) -> None:
        """Raise RailRejected unless this is the chain, and the contract is ours to the byte."""
        told = await self._rpc.call(Quantity, "eth_chainId")
        if told != self.terms.chain_id:
            raise RailRejected(f"the node is of chain {told}, not {self.terms.chain_id}")
        code = await self._rpc.call(Data, "eth_getCode", self.terms.contract, "latest")
        if code.hex() != artifact("FareboxChannels").runtime[2:]:
            found = "another contract" if code else "no contract"
            raise RailRejected(f"there is {found} at {self.terms.contract}")

    async def final_block(self) -> str:
        """The newest block that counts, as JSON-RPC names it."""
        height = await self._rpc.call(Quantity, "eth_blockNumber")
        return hex(max(0, height - self.terms.confirmations + 1))

    async def at(self, channel_id: str, block: str = "") -> ChainChannel | None:
        """A channel as the contract has it in a block: the newest that counts, or `latest`."""
        return abi.read_channel(await self._ask(abi.channels_call(channel_id), block))

    async def sub_at(
        self, channel_id: str, fragment: str, block: str = ""
    ) -> ChainSubChannel | None:
        """A sub-channel in the same way."""
        return abi.read_sub_channel(
            await self._ask(abi.sub_channel_call(channel_id, fragment), block)
        )

    async def allowance(self, token: str, owner: str) -> int:
        """What the contract may take of a token of somebody's, now."""
        call = {"to": token, "data": abi.allowance_call(owner, self.terms.contract)}
        return abi.read_number(await self._rpc.call(Data, "eth_call", call, "latest"))

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        """A channel in one of our assets."""
        found = await self.at(channel_id)
        if found is None or found.token not in self.terms.codes:
            return None
        return ChannelInfo(
            channel_id=channel_id,
            payer_did=account_did(self.terms.chain_id, found.payer),
            payee_did=account_did(self.terms.chain_id, found.payee),
            asset_id=self.terms.codes[found.token],
            epoch=found.epoch,
            status=_STATUSES[found.status],
            backing=channel_id,
        )

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """A sub-channel; its key signs EIP-712 vouchers for this contract."""
        found = await self.sub_at(channel_id, fragment)
        if found is None:
            return None
        raw = self.terms.contract_bytes + bytes.fromhex(found.key[2:])
        return SubChannelInfo(
            channel_id=channel_id,
            vm_id_fragment=fragment,
            epoch=found.epoch,
            key=VerificationKey(KeyType.EIP712, raw),
            last_claimed_amount=found.claimed,
            last_confirmed_nonce=found.nonce,
        )

    async def balance(self, backing: str, asset_id: str) -> int:
        """What is left of a channel's collateral."""
        found = await self.at(backing)
        if found is None or self.terms.codes.get(found.token) != asset_id:
            return 0
        return found.collateral

    async def _ask(self, data: str, block: str) -> bytes:
        call = {"to": self.terms.contract, "data": data}
        when = block or await self.final_block()
        return await self._rpc.call(Data, "eth_call", call, when)
