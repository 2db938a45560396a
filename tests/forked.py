"""Programs of ours as processes of their own that start at once.

`python -m farebox` takes a second to import what it needs. So one process, the nursery, imports
it once and forks a child for each program that is to run, which is then a process as any other: of
its own pid, directory, environment and output, and ended by signals. Whether the programs start
without it, those tests show that start them as people do.

The nursery ends with the process that has started it. It is started when first needed.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec

from tests import reaper

#: What can be forked, and what it imports late; each command of the command line as well.
_IMPORTED = (
    "farebox.bootstrap",
    "farebox.stores.postgres.audit",
    "farebox.stores.postgres.load",
    "farebox.testing.mint.app",
    "farebox.testing.upstream.app",
)
_PIECE = 1 << 16
_NUMBER_BYTES = 4
_END_S = 60


class Order(msgspec.Struct, frozen=True):
    """The module to run as `python -m` does."""

    module: str
    arguments: Sequence[str]
    cwd: str
    env: Mapping[str, str]


class Forked:
    """A running program, in a session of its own; to be used as `subprocess.Popen` is."""

    def __init__(self, pid: int, told: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._told = told

    def poll(self) -> int | None:
        """Its exit code, or the negative number of the signal it died of; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._told.settimeout(timeout)
            with suppress(TimeoutError, BlockingIOError):
                self.returncode = _number(self._told)
                self._told.close()
                reaper.forget(self.pid)
        return self.returncode


class _Nursery:
    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair()
        self._lock = threading.Lock()
        atexit.register(self.close)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked"],
                cwd=Path(__file__).parents[1],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
            )

    def fork(self, order: Order, out: int, error: int) -> Forked:
        told, theirs = socket.socketpair()
        with theirs, self._lock:  # what two had ordered at once would arrive as one
            raw = msgspec.json.encode(order) + b"\n"
            socket.send_fds(self._orders, [raw], [theirs.fileno(), out, error])
            child = Forked(_number(told), told)
            reaper.watch(child.pid)
            return child

    def close(self) -> None:
        """End it; what it has forked lives on."""
        self._orders.close()
        self._process.wait(_END_S)


_nursery = cache(_Nursery)


def start(
    module: str,
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str],
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
) -> Forked:
    """Run `python -m module` in a directory; the output goes to file descriptors."""
    order = Order(module, arguments, str(cwd), dict(env))
    with open(os.devnull, "wb") as nowhere:
        out, error = (nowhere.fileno() if one < 0 else one for one in (stdout, stderr))
        return _nursery().fork(order, out, error)


def _number(told: socket.socket) -> int:
    """The next number that the child's minder tells. Raises TimeoutError."""
    raw = told.recv(_NUMBER_BYTES)
    assert raw, "the nursery has ended"
    return int.from_bytes(raw, signed=True)


def _tell(told: socket.socket, number: int) -> None:
    told.send(number.to_bytes(_NUMBER_BYTES, signed=True))


# ── in the nursery ───────────────────────────────────────────────────────────────────────────────


def _serve(orders: socket.socket) -> Order:
    """Fork for each order; returns it in the child."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who mind children leave nothing
    while True:
        raw, fds, _, _ = socket.recv_fds(orders, _PIECE, 3)
        if not raw:
            sys.exit()
        while not raw.endswith(b"\n"):
            raw += orders.recv(_PIECE)
        if not os.fork():
            orders.close()
            told, *output = fds
            _mind(socket.socket(fileno=told), output)
            for number, fd in enumerate(output, 1):
                os.dup2(fd, number)
                os.close(fd)
            return msgspec.json.decode(raw, type=Order)
        for fd in fds:
            os.close(fd)


def _mind(told: socket.socket, output: Sequence[int]) -> None:
    """Fork, tell who that is and how it ends; returns in the child."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        told.close()
        os.setsid()
        return
    # Whoever hears of the child's end may take away the disk that its output is on.
    for number in (0, 1, 2, *output):
        os.close(number)
    with suppress(BrokenPipeError):  # nobody wants to know
        _tell(told, pid)
        _tell(told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _main() -> None:
    for module in _IMPORTED:
        importlib.import_module(module)
    for command in pkgutil.iter_modules(importlib.import_module("farebox.cli").__path__):
        importlib.import_module(f"farebox.cli.{command.name}")
    gc.collect()
    gc.freeze()
    order = _serve(socket.socket(fileno=os.dup(0)))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order.cwd)
    os.environ.clear()
    os.environ.update(order.env)
    sys.argv = [order.module, *order.arguments]
    try:
        runpy.run_module(order.module, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        if isinstance(left.code, int):
            atexit.register(_leave, left.code)
        raise


def _leave(code: int) -> None:
    """The last thing, once all threads have ended: Python need not take apart what it imported."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _main()
