"""Tells the story of the demo on the terminal, or to nobody."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape

_NAME_COLUMNS = 22


class Narrator:
    """Numbered steps, and under each what was seen."""

    def __init__(self, *, silent: bool) -> None:
        self._console = Console(quiet=silent, highlight=False, soft_wrap=True)
        self._steps = 0

    def step(self, title: str, why: str = "") -> None:
        """What happens next."""
        self._steps += 1
        self._console.print(f"\n[bold]{self._steps}. {escape(title)}[/]")
        if why:
            self._console.print(f"   [dim]{escape(why)}[/]")

    def saw(self, facts: Mapping[str, object]) -> None:
        """What was measured, one fact a line."""
        for name, value in facts.items():
            padded = escape(name.ljust(_NAME_COLUMNS))
            self._console.print(f"   {padded} [cyan]{escape(str(value))}[/]")

    def end(self, balanced: bool, seconds: float) -> None:
        """The last line."""
        if balanced:
            words = "[bold green]The books balance; nothing was lost, nothing was made up.[/]"
        else:
            words = "[bold red]THE BOOKS DO NOT BALANCE.[/]"
        self._console.print(f"\n{words} [dim]({seconds:.1f} s)[/]\n")
