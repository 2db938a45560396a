"""`farebox demo`: runs the story, tells it, and says by its exit code how it ended."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import typer

from farebox.cli.demo.narrator import Narrator
from farebox.cli.demo.story import tell
from farebox.cli.output import JsonOption, show

_EXIT_UNBALANCED = 1


def demo(as_json: JsonOption = False) -> None:
    """Tell the story of paid requests: a mint, a model, the gateway and a caller, all play."""
    narrator = Narrator(silent=as_json)
    with tempfile.TemporaryDirectory(prefix="farebox-demo-") as folder:
        tally = asyncio.run(tell(Path(folder), narrator))
    if as_json:
        show(tally.facts(), "", as_json=True)
    else:
        narrator.end(tally.is_balanced, tally.seconds)
    if not tally.is_balanced:
        raise typer.Exit(_EXIT_UNBALANCED)
