"""What every test may use, and where their files are: in memory, if the system has room there.

Nobody pulls a plug here: what a killed process has written is there without a disk, on which every
commit would wait for five milliseconds. What is lost with the power, a file system of ours decides
(tests/unit/stores/test_sqlite_power.py). TMPDIR names another place.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before a test imports eth_account by itself, which would let Python recurse until it crashes.
import farebox.rails.evm.accounts  # noqa: F401

pytest_plugins = ["tests.peers.fixtures"]

# How long an example takes says how busy the machine is, and nothing of ours.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 << 30


def pytest_configure() -> None:
    """Before the first file is made; workers inherit it."""
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK):
        return
    if shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES:
        os.environ["TMPDIR"] = str(_MEMORY)
        tempfile.tempdir = None  # what was found before


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Have Python look for cyclic garbage as it does in `farebox serve`, which see.

    Thousands of tests with all that they import are never garbage, and would be looked through
    again and again: a third of the time that collecting takes.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()
