"""The tasks that carry requests, so that no caller and no server that gives up cancels one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from farebox.clock import running_s
from farebox.errors import StoreError
from farebox.gateway import problems
from farebox.gateway.asgi import LetGo, Receive, Send
from farebox.gateway.delivery import Call, Delivery, Supervision, Why
from farebox.gateway.exchange import Exchange
from farebox.gateway.tally import RequestTally
from farebox.gateway.watch import Watch
from farebox.paywall.model import Admission, Answer, Ended, Presented
from farebox.paywall.service import Paywall
from farebox.pricing.book import PriceBook
from farebox.pricing.request import RequestFacts
from farebox.pricing.tokens import TokenCounter
from farebox.pricing.usage import Usage

_log = structlog.get_logger("farebox.gateway")


class Carrier:
    """Carries requests from their authorising to their settling, and stops when all are settled."""

    def __init__(
        self, paywall: Paywall, counter: TokenCounter, supervision: Supervision | None = None
    ) -> None:
        self.paywall = paywall
        self._counter = counter
        self._supervision = supervision or Supervision()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._deliveries: dict[asyncio.Task[Any], Delivery] = {}
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._watch = Watch()
        self._is_cut = False
        self.is_stopping = False
        #: The book is closed: nothing may be admitted.
        self.is_closed = False
        self.tally = RequestTally()

    @property
    def running(self) -> int:
        """How many requests are being carried."""
        return len(self._tasks)

    async def carry(self, work: Coroutine[Any, Any, None], let_go: LetGo | None = None) -> None:
        """Run `work` where nobody else can cancel it: in this task, if its server lets go of it."""
        if let_go is None:
            await self._carry_apart(work)
            return
        task = asyncio.current_task()
        assert task is not None
        let_go(task)
        self._tasks.add(task)
        try:
            await work
        finally:
            self._tasks.discard(task)

    async def _carry_apart(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a task of its own, and wait for it as long as one waits for this.

        A server that stops waiting has lost its caller, or its patience: what was delivered until
        then is settled.
        """
        loop = asyncio.get_running_loop()
        task, ended = loop.create_task(work), loop.create_future()
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, ended))
        try:
            await ended
        except asyncio.CancelledError:
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            if task in self._deliveries:
                self._deliveries[task].interrupt(Why.CALLER_LEFT)
            raise

    def _ended(self, ended: asyncio.Future[None], task: asyncio.Task[None]) -> None:
        """Tell whoever waits for a task what became of it. asyncio's own `shield` costs more."""
        self._tasks.discard(task)
        if ended.done():
            return
        if task.cancelled():
            ended.cancel()
        elif error := task.exception():
            ended.set_exception(error)
        else:
            ended.set_result(None)

    async def authorise(
        self,
        presented: Presented,
        facts: RequestFacts,
        address: str,
        book: PriceBook | None = None,
    ) -> Admission | Answer:
        """Hold what a request can cost. The answer is a 503 where the books cannot be written."""
        if self.is_closed:
            refused = problems.not_open()
            self.tally.answered(refused)
            return refused
        began_s = running_s()
        answer: Admission | Answer
        try:
            answer = await self.paywall.authorise(presented, facts, address, book)
        except StoreError as error:
            _log.warning("request.not_authorised", error=str(error))
            answer = problems.books_closed(held=False)
        except Exception:  # a defect: it is told as a problem, and what it left open is recovered
            _log.exception("request.not_authorised")
            answer = problems.failed()
        self.tally.authorising.add(running_s() - began_s)
        if isinstance(answer, Answer):
            self.tally.answered(answer)
        else:
            self.tally.admitted += 1
        return answer

    async def deliver(
        self,
        admission: Admission,
        call: Call,
        opening: Callable[[], Awaitable[Exchange]],
        receive: Receive,
        send: Send,
    ) -> None:
        """Forward an admitted request, settle it, finish its answer."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        if task in self._abandoned:
            await self._release(admission)
            return
        structlog.contextvars.bind_contextvars(request=admission.request_id)
        supervision, tally = self._supervision, self.tally
        delivery = Delivery(self.paywall, admission, call, self._counter, supervision, tally, send)
        self._deliveries[task] = delivery
        self._watch.begin(delivery, receive)
        if self._is_cut:  # while it was being authorised, so that nobody else will
            loop.call_soon(delivery.interrupt, Why.STOPPING)
        began_s = loop.time()
        try:
            await delivery.run(opening())
        except OSError:
            pass  # the caller left before the end of an answer that is settled
        finally:
            tally.delivering.add(loop.time() - began_s)
            self._watch.end(delivery)
            del self._deliveries[task]

    def forsake(self, authorising: asyncio.Task[Admission | Answer]) -> None:
        """Whoever waited for it is gone: what it comes to hold is released."""

        async def release() -> None:
            admission = await authorising
            if isinstance(admission, Admission):
                await self._release(admission)

        task = asyncio.get_running_loop().create_task(release())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _release(self, admission: Admission) -> None:
        """Give back what was held for a request that will not be forwarded."""
        try:
            await self.paywall.settle(admission, Usage(), Ended.REFUSED)
        except StoreError:
            _log.exception("request.unsettled", request=admission.request_id)

    async def stop(self, grace_s: float) -> None:
        """Take nothing new, let what runs go on for `grace_s`, cut and settle the rest."""
        self.is_stopping = True
        if self._tasks and not self._is_cut:
            await asyncio.wait(self._tasks, timeout=grace_s)
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """End what runs now: what was delivered is charged, what is not forwarded yet is not."""
        self.is_stopping = self._is_cut = True
        for delivery in tuple(self._deliveries.values()):
            delivery.interrupt(Why.STOPPING)
