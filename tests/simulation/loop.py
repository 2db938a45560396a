"""An event loop whose time is a number, and processes in it that can be killed anywhere.

One callback runs at a time, and time passes only where nothing is left to do. Which of several
callbacks runs first is the seed's choice where it is told to shuffle. A process is everything that
was started in its context: kill it, and no callback of it ever runs again; no `except`, no
`finally`, as when a machine stops.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

#: Unwinding may start a task or two, which have to unwind as well.
_BURIALS_MAX = 3
_BURIAL_S = 1_000


class NothingLeft(Exception):
    """Everybody waits and no timer is set: it would be so for ever."""


class Process:
    """What one program has in memory: alive until it is killed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.is_frozen = False
        #: What it would have done meanwhile, had it not been frozen.
        self.parked: list[asyncio.Handle] = []
        self._context = copy_context()
        self._context.run(_PROCESS.set, self)
        self._tasks: list[asyncio.Task[Any]] = []

    def spawn(self, work: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
        """Start a task of this process."""
        loop = asyncio.get_running_loop()
        return loop.create_task(work, name=name or None, context=self._context)

    def kill(self) -> None:
        """Stop it between two steps. What it has in memory is never seen again."""
        self.is_alive = False

    def freeze(self) -> None:
        """Let it do nothing until it is thawed, and notice nothing: SIGSTOP, a paused machine."""
        self.is_frozen = True

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Keep a task of this process from being collected, whose `finally` would run then."""
        self._tasks.append(task)
        if len(self._tasks) > 256:
            self._tasks = [one for one in self._tasks if not one.done()]

    def remains(self) -> list[asyncio.Task[Any]]:
        """Tasks that never ended."""
        return [one for one in self._tasks if not one.done()]


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


def current_process() -> Process | None:
    """Whose step this is."""
    return _PROCESS.get()


class SimulatedLoop(asyncio.BaseEventLoop):
    """Time in seconds from 0; no selector, no sockets, no threads."""

    # What the base class keeps: callbacks to run now, and a heap of those to run at a time.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, chance: Random, *, is_shuffled: bool) -> None:
        super().__init__()
        self._chance = chance
        self._is_shuffled = is_shuffled
        self._now_s = 0.0
        self._is_over = False
        self._processes: list[Process] = []
        #: What the dead were about to do, kept for their burial.
        self._unrun: list[asyncio.Handle] = []
        self._step_waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self.steps = 0
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda *_: None)  # what matters is logged by the house

    def time(self) -> float:
        """Seconds since the beginning."""
        return self._now_s

    def new_process(self, name: str) -> Process:
        """A program that starts now."""
        process = Process(name)
        self._processes.append(process)
        return process

    def thaw(self, process: Process) -> None:
        """Let it go on with all that has come for it meanwhile."""
        process.is_frozen = False
        self._ready.extend(process.parked)
        process.parked = []

    def steps_pass(self, count: int) -> asyncio.Future[None]:
        """Done after so many more steps of whoever runs: a moment that no timer could name."""
        waiter = self.create_future()
        heapq.heappush(self._step_waiters, (self.steps + count, next(self._numbers), waiter))
        return waiter

    def bury(self) -> None:
        """Let the tasks of the dead and of the living unwind, when nobody looks any more."""
        self._is_over = True
        for process in self._processes:
            self.thaw(process)
        self._ready.extend(self._unrun)  # a task whose wake-up is lost cannot even be cancelled
        for _ in range(_BURIALS_MAX):
            remains = [task for process in self._processes for task in process.remains()]
            if remains:
                self.run_until_complete(_unwind(remains))
        self.run_until_complete(self.shutdown_asyncgens())

    # ── what BaseEventLoop asks of its children ──────────────────────────────────────────────────

    def _run_once(self) -> None:
        self._wake_by_time()
        handle = self._take()
        process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]
        if self._is_dead(handle):
            self._unrun.append(handle)
        elif process is not None and process.is_frozen:
            process.parked.append(handle)
        elif not handle.cancelled():
            handle._run()
        self.steps += 1
        while self._step_waiters and self._step_waiters[0][0] <= self.steps:
            waiter = heapq.heappop(self._step_waiters)[2]
            if not waiter.done():
                waiter.set_result(None)

    def _wake_by_time(self) -> None:
        if not self._ready:
            while self._scheduled and self._is_idle(self._scheduled[0]):
                self._unrun.append(heapq.heappop(self._scheduled))
            if not self._scheduled:
                raise NothingLeft
            self._now_s = max(self._now_s, self._scheduled[0].when())
        while self._scheduled and self._scheduled[0].when() <= self._now_s:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False  # type: ignore[attr-defined]
            self._ready.append(handle)

    def _is_idle(self, handle: asyncio.Handle) -> bool:
        return handle.cancelled() or self._is_dead(handle)

    def _is_dead(self, handle: asyncio.Handle) -> bool:
        process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]
        return process is not None and not process.is_alive and not self._is_over

    def _take(self) -> asyncio.Handle:
        if self._is_shuffled and len(self._ready) > 1:
            self._ready.rotate(-self._chance.randrange(len(self._ready)))
        return self._ready.popleft()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, *, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
        process = (context or copy_context()).get(_PROCESS)
        if process is not None:
            process.adopt(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task

    def _asyncgen_finalizer_hook(self, agen: object) -> None:
        """No step for what the garbage collector finds: it comes at moments of its own."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector, to be woken from outside."""

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def run_in_executor(  # type: ignore[override]
        self, _: object, work: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """What is given to a thread is done at once: there is only one."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(work(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when their time comes."""


async def _unwind(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=_BURIAL_S)


class RealWorld(Exception):
    """Something reached for what the simulation does not have: a thread, a socket, the clock."""


class Gate:
    """Something to wait for, opened and shut again any number of times."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def __await__(self) -> Generator[Any, None, None]:
        """Until it is opened next."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        yield from future

    def open(self) -> None:
        """Let everybody through who waits now."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def seeded(seed: int, purpose: str) -> Random:
    """A stream of chance of its own for each purpose, so that one more draw moves no other."""
    return Random(f"{seed}/{purpose}")
