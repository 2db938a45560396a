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

from farebox.clock import ManualClock, SystemClock
from farebox.errors import RailRejected
from farebox.rails.evm.fees import GWEI, Fees
from farebox.rails.evm.keys import keys_from
from farebox.rails.evm.outbox import Call
from farebox.rails.evm.reads import RpcChain, held, transfer_of
from farebox.rails.evm.rpc import Rpc, open_rpc_session
from farebox.rails.evm.scan import RpcScan
from farebox.rails.web import Breaker
from farebox.testing.asgi import serving
from tests.peers.anvil import CHAIN_ID, CONTRACTS, MNEMONIC, Anvil, Contract
from tests.simulation.evm import EvmMoods, ModelEvm
from tests.simulation.evm_contracts import TOKEN
from tests.simulation.evm_node import ModelNode

KEYS = keys_from(MNEMONIC)
SENDER = KEYS.addresses[0]
SOMEBODY = "0x0000000000000000000000000000000000B0b000"
TOKENS = 5_000
_TOKEN_GAS = 100_000


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


@asynccontextmanager
async def side_at(
    url: str, mine: Callable[[], object], leave: Callable[[], None]
) -> AsyncIterator[Side]:
    async with open_rpc_session() as session:
        rpc = Rpc(url, session, Breaker(SystemClock(), who="the node"))
        chain = RpcChain(rpc)
        yield Side(chain, RpcScan(rpc), mine, leave, await chain.used(SENDER))


async def test_the_simulated_chain_answers_as_anvil_does_anvil(anvil: Anvil) -> None:
    token = anvil.deploy(CONTRACTS / "AuthorizedToken.sol")
    anvil.rpc("anvil_setCode", TOKEN, anvil.rpc("eth_getCode", token.address, "latest"))
    anvil.mined(Contract(anvil, TOKEN, token.abi).send("mint", SENDER, TOKENS))
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
