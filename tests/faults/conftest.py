"""One nursery for the houses of all fault tests; play things as processes for those that serve."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import mint, upstream
from tests.crash.world import Nursery, the_nursery

__all__ = ["mint", "nursery", "upstream"]


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    return the_nursery()
