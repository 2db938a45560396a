"""What contracts do on the model of an EVM chain: the token, and the one that pays many at once.

Each deed is carried out in a block as it is tried by a call: whole, or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from eth_account.messages import encode_typed_data
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from farebox.rails.evm.accounts import Account
from farebox.rails.evm.contracts import DEPLOYER, artifact
from tests.signed_transfers import TYPES, domain_of

TOKEN: Final = "0x" + "70" * 20
CHAIN_ID: Final = 31_337
DISPERSE: Final = artifact("Disperse").address
#: The token's EIP-712 domain.
DOMAIN: Final = domain_of(TOKEN, CHAIN_ID)
COIN_GAS: Final = 21_000
TOKEN_GAS: Final = 52_000
_AUTHORIZED_GAS: Final = 80_000
_BATCH_GAS, _ITEM_GAS = 50_000, 36_000
_DEPLOY_GAS: Final = 900_000
_APPROVE_GAS: Final = 46_000


@dataclass(frozen=True, slots=True)
class Move:
    """Somebody's tokens become somebody else's."""

    payer: str
    to: str
    amount: int


@dataclass(frozen=True, slots=True)
class Moves:
    """Transfers, all of them or none: of the sender's own, or of those who have agreed."""

    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Authorized:
    """EIP-3009: a transfer that its payer has signed. Times are UTC seconds."""

    move: Move
    valid_after: int
    valid_before: int
    nonce: str
    signature: str


@dataclass(frozen=True, slots=True)
class Approve:
    """Somebody else may move so much of the sender's tokens."""

    spender: str
    amount: int


@dataclass(frozen=True, slots=True)
class Deploy:
    """Put the contract that pays many where it belongs."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pay many, in tokens or in coin."""

    is_token: bool
    items: tuple[tuple[str, int], ...]


Deed = Moves | Authorized | Approve | Deploy | Batch | None


@dataclass(frozen=True, slots=True)
class Log:
    """An event. A `move` is that of the token's `Transfer`."""

    address: str
    topics: tuple[str, ...]
    data: int | None
    move: Move | None = None


@dataclass
class State:
    """What everybody has after a block, how many nonces each has used, what contracts know."""

    coin: Counter[str] = field(default_factory=Counter)
    token: Counter[str] = field(default_factory=Counter)
    nonces: Counter[str] = field(default_factory=Counter)
    #: Signed transfers that were carried out, and what the paying contract may move of whom.
    used: frozenset[tuple[str, str]] = frozenset()
    allowed: Counter[str] = field(default_factory=Counter)
    has_disperse: bool = False

    def copy(self) -> State:
        """For the next block, or to try something."""
        return State(
            Counter(self.coin),
            Counter(self.token),
            Counter(self.nonces),
            self.used,
            Counter(self.allowed),
            self.has_disperse,
        )

    def become(self, after: State) -> None:
        """What was tried is so."""
        self.coin, self.token, self.nonces = after.coin, after.token, after.nonces
        self.used, self.allowed, self.has_disperse = after.used, after.allowed, after.has_disperse

    def has_code(self, address: str) -> bool:
        """Whether a contract is there."""
        return address in (TOKEN, DEPLOYER) or (address == DISPERSE and self.has_disperse)


class Reverted(Exception):
    """Nothing was done."""


@dataclass(frozen=True, slots=True)
class Around:
    """What surrounds a deed: who does it, when, and whom the token blocks."""

    sender: str
    time_s: int
    blocked: frozenset[str]


def gas_of(to: str, deed: Deed) -> int:
    """What it uses."""
    match deed:
        case Moves(moves):
            return TOKEN_GAS * max(1, len(moves))
        case Authorized():
            return _AUTHORIZED_GAS
        case Approve():
            return _APPROVE_GAS
        case Deploy():
            return _DEPLOY_GAS
        case Batch(_, items):
            return _BATCH_GAS + _ITEM_GAS * len(items)
    return TOKEN_GAS if to == TOKEN else COIN_GAS


def carry_out(deed: Deed, state: State, around: Around) -> tuple[Log, ...]:
    """Do it, and tell what it emits. Raises Reverted, and leaves the state in between."""
    match deed:
        case Moves(moves):
            return tuple(_move(state, one, around) for one in moves)
        case Authorized():
            return _authorized(deed, state, around)
        case Approve(spender, amount):
            assert spender == DISPERSE, "nobody else is known here"
            state.allowed[around.sender] = amount
            approval = _topic("Approval(address,address,uint256)")
            return (Log(TOKEN, (approval, word(around.sender), word(spender)), amount),)
        case Deploy():
            if state.has_disperse:
                raise Reverted("it is there already")
            state.has_disperse = True
        case Batch():
            if not state.has_disperse:
                return ()  # a call of nothing
            return _in_token(deed, state, around) if deed.is_token else _in_coin(deed, state)
    return ()


def _move(state: State, move: Move, around: Around) -> Log:
    if move.amount > state.token[move.payer] or move.to in around.blocked:
        raise Reverted("not covered, or blocked")
    state.token[move.payer] -= move.amount
    state.token[move.to] += move.amount
    topics = (_topic("Transfer(address,address,uint256)"), word(move.payer), word(move.to))
    return Log(TOKEN, topics, move.amount, move)


def _authorized(deed: Authorized, state: State, around: Around) -> tuple[Log, ...]:
    name = (deed.move.payer, deed.nonce)
    if not deed.valid_after < around.time_s < deed.valid_before:
        raise Reverted("not valid now")
    if name in state.used or _signer(deed) != deed.move.payer:
        raise Reverted("used, or not signed by its payer")
    state.used |= {name}
    topics = (_topic("AuthorizationUsed(address,bytes32)"), word(deed.move.payer), deed.nonce)
    return (Log(TOKEN, topics, None), _move(state, deed.move, around))


@cache
def _signer(deed: Authorized) -> str:
    """By the library's own reading of EIP-712, not by the house's."""
    one = deed.move
    message = {
        "from": one.payer,
        "to": one.to,
        "value": one.amount,
        "validAfter": deed.valid_after,
        "validBefore": deed.valid_before,
        "nonce": deed.nonce,
    }
    signable = encode_typed_data(DOMAIN, TYPES, message)
    return str(Account.recover_message(signable, signature=deed.signature))


def _in_token(deed: Batch, state: State, around: Around) -> tuple[Log, ...]:
    total = sum(amount for _, amount in deed.items)
    if total > state.allowed[around.sender]:
        raise Reverted("not approved")
    logs = [_move(state, Move(around.sender, DISPERSE, total), around)]
    failed = 0
    for index, (to, amount) in enumerate(deed.items):
        try:
            logs.append(_move(state, Move(DISPERSE, to, amount), around))
        except Reverted:
            failed += amount
            logs.append(Log(DISPERSE, (_topic("Failed(uint256)"), f"0x{index:064x}"), None))
    if failed:
        logs.append(_move(state, Move(DISPERSE, around.sender, failed), around))
    return tuple(logs)


def _in_coin(deed: Batch, state: State) -> tuple[Log, ...]:
    """Out of what was sent along, to accounts of persons, who never refuse it."""
    for to, amount in deed.items:
        if amount > state.coin[DISPERSE]:
            raise Reverted("more than was sent along")
        state.coin[DISPERSE] -= amount
        state.coin[to] += amount
    return ()


# ── calls ────────────────────────────────────────────────────────────────────────────────────────


def read_deed(sender: str, to: str, data: str) -> Deed:
    """What a call does; `data` is without 0x. None: it only brings coin."""
    match to, data[:8]:
        case address, selector if address == TOKEN and selector == _selector(_TRANSFER):
            words = _words(data)
            return Moves((Move(sender, _address(words[0]), int(words[1], 16)),))
        case address, selector if address == TOKEN and selector == _selector(SETTLE):
            return _read_authorized(_words(data))
        case address, selector if address == TOKEN and selector == _selector(APPROVE):
            words = _words(data)
            return Approve(_address(words[0]), int(words[1], 16))
        case address, _ if address == DEPLOYER:
            assert f"0x{data}" == artifact("Disperse").deployment, "only ours is put there"
            return Deploy()
        case address, selector if address == DISPERSE and selector == _selector(PAY_TOKEN):
            words = _words(data)
            assert _address(words[0]) == TOKEN, "the only one"
            return Batch(True, _items(words, words[1], words[2]))
        case address, selector if address == DISPERSE and selector == _selector(PAY_COIN):
            words = _words(data)
            return Batch(False, _items(words, words[0], words[1]))
    return None


_TRANSFER: Final = "transfer(address,uint256)"
APPROVE: Final = "approve(address,uint256)"
SETTLE: Final = (
    "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,"
    "uint8,bytes32,bytes32)"
)
PAY_TOKEN: Final = "payToken(address,address[],uint256[])"
PAY_COIN: Final = "payNative(address[],uint256[])"


def _read_authorized(words: Sequence[str]) -> Authorized:
    payer, to = map(_address, words[:2])
    value, after, before = (int(one, 16) for one in words[2:5])
    signature = f"0x{words[7]}{words[8]}{words[6][-2:]}"
    return Authorized(Move(payer, to, value), after, before, f"0x{words[5]}", signature)


def _items(words: Sequence[str], to_at: str, amounts_at: str) -> tuple[tuple[str, int], ...]:
    whom, amounts = (_array(words, int(at, 16) // 32) for at in (to_at, amounts_at))
    return tuple(zip(map(_address, whom), (int(one, 16) for one in amounts), strict=True))


def _array(words: Sequence[str], at: int) -> Sequence[str]:
    return words[at + 1 : at + 1 + int(words[at], 16)]


def _words(data: str) -> list[str]:
    return [data[at : at + 64] for at in range(8, len(data), 64)]


def _address(raw: str) -> str:
    return to_checksum_address(f"0x{raw[-40:]}")


def word(address: str) -> str:
    """An address as events have it."""
    return f"0x{address[2:].lower():0>64}"


@cache
def _selector(signature: str) -> str:
    return keccak(text=signature)[:4].hex()


@cache
def _topic(signature: str) -> str:
    return f"0x{keccak(text=signature).hex()}"
