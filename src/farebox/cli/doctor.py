"""`farebox doctor`: look at everything a server depends on, and say what to do about it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import typer

from farebox.cli import checks
from farebox.cli.checks import Finding, Verdict
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, progress, show
from farebox.errors import InvalidSettings
from farebox.pricing.parse import parse_rules
from farebox.rails.cashu import open_session
from farebox.settings import Settings

_EXIT_UNWELL = 1
_MARKS = {Verdict.FINE: "ok", Verdict.WARNING: "warn", Verdict.FAILURE: "FAIL"}


def doctor(
    settings: SettingsOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Check settings, keys, disk, mints, upstreams and clock; say what to do for each fault."""
    findings = asyncio.run(_all(settings, data, progress))
    unwell = any(finding.verdict is Verdict.FAILURE for finding in findings)
    facts = {
        "ok": not unwell,
        "checks": [
            {
                "check": finding.check,
                "verdict": finding.verdict.value,
                "found": finding.found,
                "advice": finding.advice,
            }
            for finding in findings
        ],
    }
    show(facts, "\n".join(map(_text, findings)), as_json=as_json)
    if unwell:
        raise typer.Exit(_EXIT_UNWELL)


async def _all(file: Path | None, data: Path | None, say: Callable[[str], None]) -> list[Finding]:
    findings = []
    try:
        settings = read_settings(file, data)
        rules = parse_rules(settings.prices)
    except InvalidSettings as error:
        advice = "correct it, or write a new file with `farebox init`"
        return [Finding(Verdict.FAILURE, "settings", str(error), advice)]
    findings += checks.settings(settings, rules)
    findings += [
        checks.data_directory(settings.data_dir),
        checks.root_key(settings, os.environ),
        checks.free_space(settings.data_dir),
        checks.durable_writes(settings.data_dir),
        checks.tokenizer(rules),
    ]
    findings.append(await checks.book(settings))
    async for finding in _network(settings, say):
        findings.append(finding)
    return findings


async def _network(settings: Settings, say: Callable[[str], None]) -> AsyncIterator[Finding]:
    async with open_session() as session:
        for mint in settings.mints:
            say(f"asking {mint.url} …")
            for finding in await checks.mint(session, mint):
                yield finding
        for upstream in settings.upstreams:
            for url in upstream.urls:
                say(f"asking {url} …")
                yield await checks.upstream(session, url, upstream.connect_timeout_s)


def _text(finding: Finding) -> str:
    line = f"{_MARKS[finding.verdict]:4}  {finding.check}: {finding.found}"
    return f"{line}\n      → {finding.advice}" if finding.advice else line
