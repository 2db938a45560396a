"""What a command says: facts on standard output, progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated

import msgspec
import typer

#: The `--json` option, the same in every command: `as_json: JsonOption = False`.
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def show(facts: Mapping[str, object], text: str, *, as_json: bool) -> None:
    """Print what a command found: `facts` as one line of JSON, or the same as `text` for people.

    Amounts are integers with their unit in the key (`balance_msat`), times RFC 3339 texts.
    """
    sys.stdout.write((msgspec.json.encode(facts).decode() if as_json else text) + "\n")
    sys.stdout.flush()


def progress(text: str) -> None:
    """Say on standard error what goes on meanwhile, so that standard output stays clean."""
    print(text, file=sys.stderr, flush=True)
