"""What tests start ends with them, also where they are killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.process import PeerProcess
from tests.waiting import eventually

ROOT = Path(__file__).parents[3]
#: A test process that is killed: it has started a peer, whose own child is in the same session.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.peers.process import PeerProcess
from threading import Thread
folder = Path(sys.argv[1])
command = ["sh", "-c", "sleep 600 & echo $$ $! > draft; mv draft pids; wait"]
starting = Thread(target=lambda: PeerProcess(command, os.environ, folder / "log"))
starting.start()
starting.join()
print("started", flush=True)
signal.pause()
"""


def lives(pid: int) -> bool:
    """Whether there is such a process, and not just what is left of it until it is asked for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
async def test_a_peer_and_its_children_end_with_a_test_that_was_killed(tmp_path: Path) -> None:
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, str(tmp_path)), cwd=ROOT, stdout=subprocess.PIPE
    )
    assert killed.stdout is not None
    assert await killed.stdout.readline() == b"started\n"
    await eventually((tmp_path / "pids").exists)
    pids = [int(text) for text in (tmp_path / "pids").read_text().split()]
    assert all(map(lives, pids)), "the end of the thread that started them is not theirs"
    killed.kill()
    await killed.wait()
    await eventually(lambda: any(map(lives, pids)), lambda left: not left)


def test_what_was_stopped_is_not_killed_again(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.reaper.watch", lambda pid: told.append(("watch", pid)))
        patch.setattr("tests.reaper.forget", lambda pid: told.append(("forget", pid)))
        process = PeerProcess(["sleep", "600"], {"PATH": "/bin:/usr/bin"}, tmp_path / "log")
        process.stop()
    (_, pid), (_, same) = told
    assert [name for name, _ in told] == ["watch", "forget"]
    assert pid == same
