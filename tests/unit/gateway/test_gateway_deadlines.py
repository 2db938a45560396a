"""Waits that end in time, and those that are ended."""

from __future__ import annotations

import asyncio

import pytest

from farebox.gateway.deadlines import Deadlines


async def test_what_is_overdue_is_ended_and_the_task_goes_on() -> None:
    deadlines = Deadlines(0.05)
    with pytest.raises(TimeoutError):
        await deadlines.wait(asyncio.Event().wait())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await Deadlines(60).wait(asyncio.sleep(0, "in time")) == "in time"


async def test_a_server_that_cancels_is_obeyed() -> None:
    deadlines = Deadlines(60)
    waiting = asyncio.create_task(deadlines.wait(asyncio.Event().wait()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
