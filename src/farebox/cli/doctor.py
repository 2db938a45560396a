"""`farebox doctor`: look at everything a server depends on, and say what to do about it."""

from __future__ import annotations

import asyncio

import typer

from farebox.cli import checks
from farebox.cli.desk import examination
from farebox.cli.door import ask_server
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, progress, show
from farebox.cli.requests import Examine, Facts
from farebox.errors import InvalidSettings
from farebox.operating import Finding, Verdict
from farebox.pricing.parse import parse_rules
from farebox.settings import Settings

_EXIT_UNWELL = 1
_MARKS = {
    Verdict.FINE.value: "ok",
    Verdict.WARNING.value: "warn",
    Verdict.FAILURE.value: "FAIL",
}


def doctor(
    settings: SettingsOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Check settings, keys, disk, mints, upstreams and clock; say what to do for each fault."""
    try:
        found = read_settings(settings, data)
        parse_rules(found.prices)
    except InvalidSettings as error:
        advice = "correct it, or write a new file with `farebox init`"
        facts = examination([Finding(Verdict.FAILURE, "settings", str(error), advice)])
    else:
        facts = asyncio.run(_examine(found))
    show(facts, "\n".join(map(_text, facts["checks"])), as_json=as_json)
    if not facts["ok"]:
        raise typer.Exit(_EXIT_UNWELL)


async def _examine(found: Settings) -> Facts:
    """By the running server, which knows the flags it was started with; else by ourselves."""
    answer = await ask_server(found.data_dir, Examine())
    if answer is not None:
        return answer
    return examination(await checks.examine(found, is_served=False, say=progress))


def _text(check: Facts) -> str:
    line = f"{_MARKS[check['verdict']]:4}  {check['check']}: {check['found']}"
    return f"{line}\n      → {check['advice']}" if check["advice"] else line
