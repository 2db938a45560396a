"""A house is killed between every two steps of claiming on a real chain, and of closing there.

It goes on; what it was promised comes once, all of it, and its books say the same as the contract.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from farebox.channels.closing import Agreed
from farebox.channels.model import CHANNEL_CLOSE, CloseState
from farebox.rails.evm.reads import RpcChain
from farebox.stores.sqlite import SqliteStore
from farebox.wire.subrav.model import ErrorCode
from tests.integration.evm_channel_world import house_of, payer_of
from tests.integration.evm_channels import FRAGMENT
from tests.peers.anvil import Anvil

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(600)]
PROMISED = 123_456
Act = Callable[[Anvil, Path, str, str], Coroutine[Any, Any, None]]
_FORK = multiprocessing.get_context("fork")
#: The commits and broadcasts of one claim are fewer.
_STEPS_MAX = 40


async def prepare(anvil: Anvil, folder: Path, key: str) -> str:
    """A channel with a voucher that is not claimed; its id."""
    async with house_of(anvil, folder, key=key) as house, payer_of(house, folder) as payer:
        await payer.open()
        await payer.pays(PROMISED - 1)
        await payer.pays(1)
        return payer.channel


async def claim(anvil: Anvil, folder: Path, key: str, channel: str) -> None:
    """A process that claims until it is done."""
    async with house_of(anvil, folder, key=key) as house:
        await house.settle(channel)


async def close(anvil: Anvil, folder: Path, key: str, channel: str) -> None:
    """A process that is asked to close, and does not stop before it is done."""
    async with house_of(anvil, folder, key=key) as house:
        agreed = await house.closing.ask(channel)
        assert isinstance(agreed, Agreed) or agreed.code is ErrorCode.CHANNEL_CLOSED
        if await house.desk.ledger.store.find(CHANNEL_CLOSE, {"state": CloseState.AGREED}):
            await house.close()


async def check(anvil: Anvil, folder: Path, key: str, channel: str) -> None:
    """Books and contract agree, and one transaction was enough."""
    async with house_of(anvil, folder, key=key) as house:
        sub = await house.reader.sub_at(channel, FRAGMENT)
        row = await house.row(channel)
        assert sub is not None
        assert sub.claimed == row.claimed_amount == await house.custody() == PROMISED
        await house.desk.finish()
        assert await house.desk.sending.chain.used(house.desk.sender) == 1


def dying(run: Callable[[], Coroutine[Any, Any, None]], step: int, *, after: bool) -> None:
    """In a process of its own: die before or after the n-th commit or broadcast."""
    count = 0

    def counted(act: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        async def acts(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            is_it = count == step
            if is_it and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            done = await act(*arguments, **named)
            if is_it:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return acts

    SqliteStore.commit = counted(SqliteStore.commit)  # type: ignore[method-assign]
    RpcChain.broadcast = counted(RpcChain.broadcast)  # type: ignore[method-assign]
    asyncio.run(run())
    os._exit(0)


@pytest.mark.parametrize("act", [claim, close])
def test_no_death_between_two_steps_loses_or_doubles_a_claim_anvil(
    act: Act, anvil: Anvil, tmp_path: Path
) -> None:
    step, after, deaths = 1, False, 0
    while step <= _STEPS_MAX:
        folder, key = tmp_path / f"{step}-{after}", secrets.token_hex(32)
        folder.mkdir()
        channel = asyncio.run(prepare(anvil, folder, key))

        def run(
            folder: Path = folder, key: str = key, channel: str = channel
        ) -> Coroutine[Any, Any, None]:
            return act(anvil, folder, key, channel)

        process = _FORK.Process(target=dying, args=(run, step), kwargs={"after": after})
        process.start()
        process.join(120)
        died = process.exitcode == -signal.SIGKILL
        assert died or process.exitcode == 0
        if died:
            asyncio.run(run())
        asyncio.run(check(anvil, folder, key, channel))
        if not died:
            break
        deaths += 1
        step, after = (step + 1, False) if after else (step, True)
    # A nonce, its broadcast, and that it is booked; of its block one may hear in the same step.
    assert deaths >= 2 * 3
