"""One nursery for all crash tests; the world around a victim, anew for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.crash.world import Nursery, Outside, outside


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
async def around() -> AsyncIterator[Outside]:
    async with outside() as world:
        yield world
