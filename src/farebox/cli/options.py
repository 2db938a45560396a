"""The options that commands share: which settings, which data directory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from farebox.clock import NS_PER_S
from farebox.errors import InvalidAmount, InvalidInput
from farebox.money import parse_decimal
from farebox.settings import Settings, find_settings, load_settings

SettingsOption = Annotated[
    Path | None,
    typer.Option("--settings", help="The settings file; else FAREBOX_SETTINGS or ./farebox.toml."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="The directory of books and keys; over the settings.")
]

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_DURATION_MAX_S = 100 * 366 * 86_400


def read_settings(
    file: Path | None, data: Path | None, more: Mapping[str, object] | None = None
) -> Settings:
    """All settings, with what the command line says on top. Raises InvalidSettings."""
    overrides = dict(more or {})
    if data is not None:
        overrides["data_dir"] = str(data.absolute())
    return load_settings(find_settings(file, os.environ), os.environ, overrides)


def amount_msat(text: str) -> int:
    """Read "100 sat" or "500 msat". Raises InvalidAmount saying so."""
    number, _, unit = text.strip().partition(" ")
    scale = {"sat": 3, "msat": 0}.get(unit.strip())
    if scale is None:
        raise InvalidAmount(f'{text!r} is no amount: write "100 sat" or "500 msat"')
    return parse_decimal(number, scale)


def duration_ns(text: str) -> int:
    """Read "30d", "12h", "90s". Raises InvalidInput saying so."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidInput(f'{text!r} is no duration: write "90s", "15m", "12h", "30d" or "4w"')
    duration_s = int(match.group(1)) * _SECONDS[match.group(2)]
    if duration_s > _DURATION_MAX_S:
        raise InvalidInput(f"{text!r} is longer than a hundred years")
    return duration_s * NS_PER_S
