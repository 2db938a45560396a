"""Ends what a test process has started once that process is gone, however it ended.

A peer has a session of its own, so that Ctrl-C or a kill of pytest does not reach it. One process
beside each test process is told of every such session; it hears of the end by the pipe that closes
then, and kills what is left. (A child's own `PR_SET_PDEATHSIG` would hang on the thread that forked
it, which may end long before the process.)
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache


class _Reaper:
    def __init__(self, _of: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self.close)

    def tell(self, sign: str, pid: int) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # a test is not to fail because somebody killed this one
            self._process.stdin.write(f"{sign}{pid}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Have it kill what is left, and end."""
        self._process.communicate()


_reaper = cache(_Reaper)  # one for each process that starts peers


def watch(pid: int) -> None:
    """Have the session of `pid` killed when this process is gone."""
    _reaper(os.getpid()).tell("+", pid)


def forget(pid: int) -> None:
    """It has ended: its number may be another's soon."""
    _reaper(os.getpid()).tell("-", pid)


def _born(pid: int) -> str:
    """When a process began, as Linux tells it; "" for none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _main() -> None:
    watched: dict[int, str] = {}
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            watched[pid] = _born(pid)
        else:
            watched.pop(pid, None)
    for pid, born in watched.items():
        if born and born == _born(pid):  # else its number may be another's
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    _main()
