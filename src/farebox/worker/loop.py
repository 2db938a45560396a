"""Runs each job again and again, some seconds apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

_log = structlog.get_logger("farebox.worker")


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do every `every_s` seconds, counted from the end of the last time."""

    name: str
    every_s: float
    run: Callable[[], Awaitable[object]]


class Worker:
    """The jobs of one process."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start every job; the first run of each is now."""
        self._tasks = [asyncio.create_task(_repeat(job), name=job.name) for job in self._jobs]

    async def stop(self) -> None:
        """Stop between two steps of whatever runs; recovery takes up what was open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


async def _repeat(job: Job) -> None:
    while True:
        try:
            await job.run()
        except Exception:
            _log.exception("worker.job_failed", job=job.name)
        await asyncio.sleep(job.every_s)
