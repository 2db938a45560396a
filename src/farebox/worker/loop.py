"""Runs each job again and again, some seconds apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from farebox.clock import running_s

_log = structlog.get_logger("farebox.worker")


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do every `every_s` seconds, counted from the end of the last time."""

    name: str
    every_s: float
    run: Callable[[], Awaitable[object]]


@dataclass(slots=True)
class Runs:
    """How a job has fared: how often it ran to its end, how often that failed, when it last went
    well."""

    count: int = 0
    failures: int = 0
    well_at_s: float = 0


class Worker:
    """The jobs of one process."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._tasks: list[asyncio.Task[None]] = []
        self.runs = {job.name: Runs() for job in jobs}

    def start(self) -> None:
        """Start every job; the first run of each is now."""
        for runs in self.runs.values():
            runs.well_at_s = running_s()
        self._tasks = [
            asyncio.create_task(_repeat(job, self.runs[job.name]), name=job.name)
            for job in self._jobs
        ]

    async def stop(self) -> None:
        """Stop between two steps of whatever runs; recovery takes up what was open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


async def _repeat(job: Job, runs: Runs) -> None:
    structlog.contextvars.bind_contextvars(job=job.name)
    while True:
        try:
            await job.run()
            runs.well_at_s = running_s()
        except Exception:
            runs.failures += 1
            _log.exception("worker.job_failed")
        runs.count += 1
        await asyncio.sleep(job.every_s)
