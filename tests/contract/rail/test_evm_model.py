"""The simulation's model of an EVM chain answers as anvil does, call by call.

The same signed transactions go to both, the same is asked of both through the rail's own client,
and the answers are compared. Hashes of blocks and amounts of gas are each chain's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import msgspec
from eth_utils.address import to_checksum_address

from farebox.clock import ManualClock, SystemClock
from farebox.errors import RailRejected
from farebox.rails.evm.accounts import Account
from farebox.rails.evm.contracts import DEPLOYER, artifact, calldata, topic
from farebox.rails.evm.fees import GWEI, Fees
from farebox.rails.evm.keys import keys_from
from farebox.rails.evm.outbox import Call
from farebox.rails.evm.reads import RpcChain, held, transfer_of
from farebox.rails.evm.rpc import Rpc, open_rpc_session
from farebox.rails.evm.scan import RpcScan
from farebox.rails.web import Breaker
from farebox.testing.asgi import serving
from tests.peers.anvil import CHAIN_ID, CONTRACTS, MNEMONIC, Anvil, Contract
from tests.signed_transfers import TYPES
from tests.simulation.evm import EvmMoods, ModelEvm
from tests.simulation.evm_contracts import (
    APPROVE,
    DISPERSE,
    DOMAIN,
    PAY_COIN,
    PAY_TOKEN,
    SETTLE,
    TOKEN,
    word,
)
from tests.simulation.evm_node import ModelNode

KEYS = keys_from(MNEMONIC)
SENDER = KEYS.addresses[0]
SOMEBODY = "0x0000000000000000000000000000000000B0b000"
ANOTHER = to_checksum_address("0x0000000000000000000000000000000000c0c000")
PAYER = Account.from_key(b"of a payer who signs transfers .")
NONCE = bytes(31) + b"\x07"
TOKENS = 5_000
_TOKEN_GAS = 100_000
_MUCH_GAS = 300_000
#: Where the token keeps its name, and behind it its version.
_NAME_SLOT = 3


@dataclass
class Side:
    """One of the two chains, with the rail's client of it; no block is made but by `mine`."""

    chain: RpcChain
    scan: RpcScan
    mine: Callable[[], object]
    #: Leave the last block for two empty ones.
    leave: Callable[[], None]
    #: The sender's first nonce here.
    first: int

    async def said(self, call: Awaitable[object]) -> object:
        """An answer, or whether and how it was refused."""
        try:
            return await call
        except RailRejected as no:
            return "reverted" if no.code == 3 else "known" if "already" in str(no) else "refused"


def signed(side: Side, nonce: int, call: Call, gwei: int) -> tuple[str, str]:
    return KEYS.sign(
        SENDER, CHAIN_ID, side.first + nonce, call, Fees(gwei * GWEI, GWEI * gwei // 5)
    )


async def lived(side: Side) -> list[object]:
    """What is seen of one life, but for what is each chain's own."""
    chain, scan, seen = side.chain, side.scan, list[object]()
    pays, paid = Call(SOMEBODY, 7), transfer_of(TOKEN, SOMEBODY, 300)
    first, raw = signed(side, 0, pays, 10)
    dearer, dear_raw = signed(side, 0, pays, 20)
    _, cheap_raw = signed(side, 0, Call(SOMEBODY, 8), 10)
    for text in (raw, raw, cheap_raw, dear_raw):
        seen.append(await side.said(chain.broadcast(text)))
    seen += [await chain.used(SENDER) - side.first, await chain.pending(SENDER) - side.first]
    seen.append(await chain.receipt(dearer))
    await asyncio.to_thread(side.mine)
    receipt = await chain.receipt(dearer)
    assert receipt is not None
    seen += [int(receipt.status), int(receipt.gas_used), await chain.receipt(first)]
    seen.append(await side.said(chain.broadcast(signed(side, 0, Call(SOMEBODY, 9), 90)[1])))
    too_much = Call(SOMEBODY, 10**30)
    seen.append(await side.said(chain.broadcast(signed(side, 1, too_much, 10)[1])))

    token_name, token_raw = signed(side, 1, Call(paid.to, 0, paid.data, _TOKEN_GAS), 10)
    beyond = transfer_of(TOKEN, SOMEBODY, 10**20)
    failed_name, failed_raw = signed(side, 2, Call(TOKEN, 0, beyond.data, _TOKEN_GAS), 10)
    for text in (token_raw, failed_raw):
        seen.append(await side.said(chain.broadcast(text)))
    await asyncio.to_thread(side.mine)
    head = await scan.header("latest")
    assert head is not None
    height = int(head.number)
    placed = await scan.receipts([token_name, failed_name])
    seen += [(int(placed[one].status), len(placed[one].logs)) for one in (token_name, failed_name)]
    told = await scan.transfers(height, height, [TOKEN], [SOMEBODY])
    seen += [(one.transaction_hash == token_name, one.to, one.payer, one.value) for one in told]
    block = (await scan.blocks(height, height))[0]
    seen.append(
        {one.hash: (one.sender.lower(), (one.to or "").lower()) for one in block.transactions}.get(
            token_name
        )
    )
    seen += [await held(chain, SOMEBODY, TOKEN), await held(chain, SOMEBODY, "")]
    seen.append(await side.said(chain.gas(SENDER, beyond)))
    seen.append(await side.said(chain.run(SENDER, beyond)))
    seen.append(await side.said(chain.run(SENDER, paid)))
    seen.append(bool(await chain.code(TOKEN)) and not await chain.code(SOMEBODY))
    seen.append(await scan.header(height + 1))
    history = await chain.history()
    seen.append((len(history.base_fees) == len(history.is_empty) + 1, len(history.rewards[-1])))

    await asyncio.to_thread(side.leave)
    seen.append((await scan.hashes({height}))[height] != head.hash)
    seen += [await chain.receipt(token_name), await held(chain, SOMEBODY, TOKEN)]
    seen.append(await chain.used(SENDER) - side.first)
    return seen


async def lived_together(side: Side) -> list[object]:
    """What is seen of payments that leave together, and of transfers that a payer has signed."""
    chain, scan, seen = side.chain, side.scan, list[object]()
    names = iter(range(1 << 10))

    async def done(call: Call) -> str:
        """Send it, and note what it came to."""
        call = msgspec.structs.replace(call, gas=_MUCH_GAS)
        name, raw = signed(side, next(names), call, 10)
        await chain.broadcast(raw)
        await asyncio.to_thread(side.mine)
        receipt = await chain.receipt(name)
        assert receipt is not None
        seen.append(int(receipt.status))
        seen.append([(log.address.lower(), log.topics, log.data) for log in receipt.logs])
        return name

    since = await chain.height()
    put = Call(DEPLOYER, 0, artifact("Disperse").deployment)
    seen += [bool(await chain.code(DISPERSE)), await side.said(chain.run(SENDER, put))]
    pays = Call(DISPERSE, 0, calldata(PAY_TOKEN, TOKEN, [ANOTHER, PAYER.address], [30, 12]))
    seen.append(await side.said(chain.run(SENDER, pays)))
    await done(pays)
    await done(Call(TOKEN, 0, calldata(APPROVE, DISPERSE, 1 << 200)))
    asked = calldata("allowance(address,address)", SENDER, DISPERSE)
    seen += [await chain.run(SENDER, Call(TOKEN, 0, asked)), await chain.run(SENDER, pays)]
    await done(pays)
    await done(Call(DISPERSE, 9, calldata(PAY_COIN, [ANOTHER, PAYER.address], [4, 5])))
    seen += [await held(chain, ANOTHER, of) for of in (TOKEN, "")]

    good, late = (settling(5, before) for before in (1 << 40, 1))
    used = calldata("authorizationState(address,bytes32)", PAYER.address, NONCE)
    forged = settling(5, 1 << 40, amount=6)
    for call in (good, late, forged, Call(TOKEN, 0, used)):
        seen.append(await side.said(chain.run(SENDER, call)))
    name = await done(good)
    seen.append(await chain.run(SENDER, Call(TOKEN, 0, used)))
    seen.append(await side.said(chain.run(SENDER, good)))
    await done(good)
    topics = (topic("AuthorizationUsed(address,bytes32)"), word(PAYER.address), f"0x{NONCE.hex()}")
    seen.append(await chain.told(TOKEN, topics, since) == name)
    sent = await scan.transaction(name)
    assert sent is not None
    seen += [sent.sender, sent.to, int(sent.value), await scan.transaction(f"0x{'12' * 32}")]
    return seen


def settling(value: int, before: int, *, amount: int = 0) -> Call:
    """A transfer that its payer has signed, or has signed for another amount."""
    message = {
        "from": PAYER.address,
        "to": SENDER,
        "value": value,
        "validAfter": 0,
        "validBefore": before,
        "nonce": NONCE,
    }
    made = Account.sign_typed_data(PAYER.key, DOMAIN, TYPES, message)
    parts = made.v, made.r.to_bytes(32), made.s.to_bytes(32)
    told = (PAYER.address, SENDER, amount or value, 0, before, NONCE, *parts)
    return Call(TOKEN, 0, calldata(SETTLE, *told))


@asynccontextmanager
async def side_at(
    url: str, mine: Callable[[], object], leave: Callable[[], None]
) -> AsyncIterator[Side]:
    async with open_rpc_session() as session:
        rpc = Rpc(url, session, Breaker(SystemClock(), who="the node"))
        chain = RpcChain(rpc)
        yield Side(chain, RpcScan(rpc), mine, leave, await chain.used(SENDER))


def the_token_at(anvil: Anvil) -> None:
    """Have the token where the model has it, under its name for what is signed."""
    token = anvil.deploy(CONTRACTS / "AuthorizedToken.sol")
    anvil.rpc("anvil_setCode", TOKEN, anvil.rpc("eth_getCode", token.address, "latest"))
    for slot, text in ((_NAME_SLOT, DOMAIN["name"]), (_NAME_SLOT + 1, DOMAIN["version"])):
        word_of = text.encode().ljust(31, bytes(1)) + bytes([2 * len(text)])
        anvil.rpc("anvil_setStorageAt", TOKEN, hex(slot), f"0x{word_of.hex()}")
    anvil.mined(Contract(anvil, TOKEN, token.abi).send("mint", SENDER, TOKENS))


async def test_the_simulated_contracts_do_what_ours_do_on_anvil(anvil: Anvil) -> None:
    the_token_at(anvil)
    if anvil.rpc("eth_getCode", DISPERSE, "latest") == "0x":
        anvil.mined(anvil.send(DEPLOYER, 0, data=artifact("Disperse").deployment))
    for one in (ANOTHER, PAYER.address):
        anvil.rpc("anvil_setBalance", one, "0x1")
    with anvil.paused():
        async with side_at(anvil.url, anvil.mine, lambda: None) as real:
            expected = await lived_together(real)

    model = ModelEvm(ManualClock(), EvmMoods(Random(1)), lambda _: None)
    model.endow(SENDER, 10**22, TOKENS)
    for one in (ANOTHER, PAYER.address):
        model.endow(one, 1)
    model.tip.state.has_disperse = True
    async with serving(ModelNode(model)) as url:
        async with side_at(url, model.mine, lambda: None) as modelled:
            assert await lived_together(modelled) == expected


async def test_the_simulated_chain_answers_as_anvil_does_anvil(anvil: Anvil) -> None:
    the_token_at(anvil)
    anvil.rpc("anvil_setBalance", SOMEBODY, "0x0")
    with anvil.paused():
        async with side_at(anvil.url, anvil.mine, lambda: anvil.reorganise(1)) as real:
            expected = await lived(real)

    model = ModelEvm(ManualClock(), EvmMoods(Random(1)), lambda _: None)
    model.endow(SENDER, 10**22, TOKENS)

    def leave() -> None:
        model.moods.leaves_out = 1
        model.reorganise(1)

    async with serving(ModelNode(model)) as url:
        async with side_at(url, model.mine, leave) as modelled:
            assert await lived(modelled) == expected
