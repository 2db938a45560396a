"""A payer, a payee and our channel contract on a real chain, as whoever calls it finds it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from farebox.rails.evm.contracts import ARTIFACTS, DEPLOYER, artifact
from farebox.wire.subrav.keys import KeyType, SigningKey
from farebox.wire.subrav.model import SignedSubRAV, SubRAV
from tests.integration.evm_desk import ETHER, somebody
from tests.peers.anvil import CHAIN_ID, Anvil, Contract, Document, RpcError, compile_contract

NO_TOKEN = "0x" + "0" * 40
FRAGMENT = "laptop"
DAY_S = 86_400
NONE, OPEN, CLOSING, CLOSED = range(4)
SOURCE = ARTIFACTS.with_name("FareboxChannels.sol")


def deployed(anvil: Anvil) -> Contract:
    """The contract where it lies on every chain."""
    abi, _ = compile_contract(SOURCE)
    made = artifact(SOURCE.stem)
    if anvil.rpc("eth_getCode", made.address, "latest") == "0x":
        anvil.mined(anvil.send(DEPLOYER, 0, data=made.deployment))
    return Contract(anvil, made.address, abi)


def party(anvil: Anvil, wei: int = 100 * ETHER) -> str:
    """Somebody new who has ether and whose transactions the chain takes unsigned."""
    address = somebody()
    anvil.rpc("anvil_impersonateAccount", address)
    anvil.rpc("anvil_setBalance", address, hex(wei))
    return address


def signer(contract: Contract) -> SigningKey:
    """A new key for vouchers of this contract."""
    return SigningKey(KeyType.EIP712, secrets.token_bytes(32), bytes.fromhex(contract.address[2:]))


def key_of(key: SigningKey) -> str:
    """The address of a voucher key."""
    return "0x" + key.public.raw[20:].hex()


def packed(signed: SignedSubRAV) -> tuple[object, ...]:
    """A voucher as the contract takes it."""
    sub_rav = signed.sub_rav
    channel = bytes.fromhex(sub_rav.channel_id[2:])
    signature = signed.signature
    named = (channel, sub_rav.channel_epoch, sub_rav.vm_id_fragment)
    return (*named, sub_rav.accumulated_amount, sub_rav.nonce, signature[:32], signature[32:])


@dataclass
class Pair:
    """Two who have a channel. Amounts are base units of `token`."""

    anvil: Anvil
    contract: Contract
    payer: str
    payee: str
    token: Contract | None = None
    key: SigningKey = field(init=False)

    def __post_init__(self) -> None:
        self.key = signer(self.contract)

    @property
    def token_address(self) -> str:
        return NO_TOKEN if self.token is None else self.token.address

    @property
    def channel_id(self) -> str:
        told: bytes = self.contract.call("channelIdOf", self.payer, self.payee, self.token_address)
        return "0x" + told.hex()

    @property
    def _id(self) -> bytes:
        return bytes.fromhex(self.channel_id[2:])

    # ── what they do ─────────────────────────────────────────────────────────────────────────────

    def does(self, sender: str, name: str, *arguments: object, value: int = 0) -> Document:
        """A call that must come through; its receipt."""
        sent = self.contract.send(name, *arguments, sender=sender, value=value)
        receipt = self.anvil.mined(sent)
        assert receipt["status"] == "0x1", receipt
        return receipt

    def refused(self, sender: str, name: str, *arguments: object, value: int = 0) -> str:
        """What the contract says to a call that it refuses: an error's selector, and its facts."""
        asked = {"from": sender, "to": self.contract.address, "value": hex(value)}
        asked["data"] = self.contract.data(name, *arguments)
        try:
            self.anvil.rpc("eth_call", asked, "latest")
        except RpcError as error:
            return error.data
        raise AssertionError(f"{name} was not refused")

    def open(self, amount: int, fragment: str = FRAGMENT, key: SigningKey | None = None) -> None:
        """Lock collateral; a token is minted and approved first."""
        if self.token is not None:
            self.fund(amount)
        arguments = (self.payee, self.token_address, amount, fragment, key_of(key or self.key))
        self.does(self.payer, "open", *arguments, value=0 if self.token else amount)

    def fund(self, amount: int) -> None:
        """Tokens in the payer's hand, and leave to take them."""
        assert self.token is not None
        self.anvil.mined(self.token.send("mint", self.payer, amount, sender=self.payer))
        approve = self.token.send("approve", self.contract.address, amount, sender=self.payer)
        self.anvil.mined(approve)

    def voucher(
        self, amount: int, nonce: int = 1, key: SigningKey | None = None, **changed: Any
    ) -> SignedSubRAV:
        """A voucher of the present epoch."""
        named = {"channel_id": self.channel_id, "channel_epoch": self.epoch}
        sub_rav = SubRAV(
            chain_id=CHAIN_ID,
            vm_id_fragment=FRAGMENT,
            accumulated_amount=amount,
            nonce=nonce,
            **named,  # type: ignore[arg-type]
        )
        return (key or self.key).sign_sub_rav(replace(sub_rav, **changed))

    def claim(self, *vouchers: SignedSubRAV, sender: str = "") -> Document:
        """Redeem vouchers."""
        return self.does(sender or self.payee, "claim", [packed(one) for one in vouchers])

    def refused_claim(self, *vouchers: SignedSubRAV) -> str:
        """What the contract says to vouchers."""
        return self.refused(self.payee, "claim", [packed(one) for one in vouchers])

    def request_close(self) -> None:
        """Let the challenge period begin."""
        self.does(self.payer, "requestClose", self._id)

    def close(self, sender: str, *vouchers: SignedSubRAV) -> Document:
        """End the channel."""
        return self.does(sender, "close", self._id, [packed(one) for one in vouchers])

    def refused_close(self, sender: str, *vouchers: SignedSubRAV) -> str:
        """What the contract says to who would end it."""
        return self.refused(sender, "close", self._id, [packed(one) for one in vouchers])

    def wait(self, seconds: int) -> None:
        """Let time pass on the chain."""
        self.anvil.rpc("evm_increaseTime", seconds)
        self.anvil.mine()

    # ── how it stands ────────────────────────────────────────────────────────────────────────────

    @property
    def _channel(self) -> tuple[Any, ...]:
        told: tuple[Any, ...] = self.contract.call("channels", self._id)
        return told

    @property
    def epoch(self) -> int:
        return int(self._channel[1])

    @property
    def status(self) -> int:
        return int(self._channel[2])

    @property
    def collateral(self) -> int:
        return int(self._channel[6])

    def claimed(self, fragment: str = FRAGMENT) -> int:
        """What was claimed in this epoch."""
        return int(self.contract.call("subChannel", self._id, fragment)[1])

    def held(self, address: str) -> int:
        """What somebody has of the token, or of ether."""
        if self.token is None:
            return self.anvil.balance(address)
        return int(self.token.call("balanceOf", address))
