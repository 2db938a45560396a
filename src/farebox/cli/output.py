"""What a command says: facts on standard output, progress on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec
import typer

from farebox.money import format_decimal

#: The `--json` option, the same in every command: `as_json: JsonOption = False`.
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def show(facts: Mapping[str, object], text: str, *, as_json: bool) -> None:
    """Print what a command found: `facts` as one line of JSON, or the same as `text` for people.

    Amounts are integers with their unit in the key (`balance_msat`), times RFC 3339 texts.
    """
    sys.stdout.write((msgspec.json.encode(facts).decode() if as_json else text) + "\n")
    sys.stdout.flush()


def progress(text: str) -> None:
    """Say on standard error what goes on meanwhile, so that standard output stays clean.

    Where that is full, nothing else fails for it: a server must stop when it is told to.
    """
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def sat(amount_msat: int) -> str:
    """An amount for people: `1,234.5 sat`."""
    whole, dot, fraction = format_decimal(abs(amount_msat), 3).partition(".")
    return f"{'-' if amount_msat < 0 else ''}{int(whole):,}{dot}{fraction} sat"


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows as aligned columns, the last one ragged."""
    table = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
    return "\n".join(lines)


def page_text(
    titles: Sequence[str], rows: Sequence[Sequence[str]], things: str, *, after: str, more: str
) -> str:
    """A page of a list behind the cursor `after`, and where the next one begins: `more`, if any.

    One without rows says that there are none, or none behind the cursor.
    """
    if not rows:
        return f"no {things} behind {after}" if after else f"no {things} yet"
    text = columns([titles, *rows])
    return f"{text}\nmore with: --after {more}" if more else text
