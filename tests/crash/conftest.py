"""One nursery for all crash tests; the world around a victim, anew for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.crash.world import Nursery, Outside, outside, the_nursery


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    return the_nursery()


@pytest.fixture
async def around() -> AsyncIterator[Outside]:
    async with outside() as world:
        yield world
