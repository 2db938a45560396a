"""What is seen of a run while it goes on: on standard error, where that is a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from farebox.cli.bench.openloop import Arrivals, OpenLoop
from farebox.cli.bench.tally import Tally

_LOOK_EVERY_S = 0.25
_COUNTS = "{task.fields[answered]:,} answered, {task.fields[failed]:,} failed, "
_COUNTS += "{task.fields[running]:,} running"


@contextmanager
def watched(loop: OpenLoop, arrivals: Arrivals, tally: Tally) -> Iterator[None]:
    """Show how far it is, until this is left."""
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn(_COUNTS), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        shown = bar.add_task("", total=arrivals.seconds, answered=0, failed=0, running=0)
        running = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            bar.update(
                shown,
                completed=loop.passed_s,
                answered=tally.answered,
                failed=tally.failed,
                running=loop.in_flight,
            )
            timer = running.call_later(_LOOK_EVERY_S, look)

        look()
        try:
            yield
        finally:
            timer.cancel()
