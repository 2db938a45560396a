"""The README's tour is run as it stands, and prints what it says it prints.

A block of commands behind `<!-- runs -->` is run; the text behind `<!-- prints -->` is what it
must print, where `…` stands for anything and any number of spaces for one. Ports are others here,
so that tests can share a machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from farebox.cli import app
from tests.peers.process import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(
    r"<!-- runs -->\n```sh\n(?P<commands>.*?)```\n<!-- prints -->\n```text\n(?P<printed>.*?)```",
    re.DOTALL,
)
_PORTS = ("3338", "9000", "8080")
_BETWEEN = "-- next --"
_READY = "until curl -sf http://127.0.0.1:8080/healthz && curl -sf http://127.0.0.1:9000/echo \\\n"
_READY += "  && curl -sf http://127.0.0.1:3338/v1/info; do sleep 0.1; done > /dev/null"


@dataclass(frozen=True)
class Block:
    """Some commands, and what they print."""

    commands: str
    printed: str

    @property
    def pattern(self) -> str:
        """What they print, as a regular expression."""
        return ".*?".join(re.escape(part) for part in _plain(self.printed).split("…"))


def _plain(text: str) -> str:
    """Columns are as wide as the longest port, and HTTP ends lines in its own way."""
    return re.sub(" +", " ", text.replace("\r", "").strip())


def blocks() -> list[Block]:
    return [Block(match["commands"], match["printed"]) for match in _BLOCK.finditer(README)]


def script(ports: dict[str, str]) -> str:
    first, *rest = blocks()
    parts = [first.commands + _READY, *(block.commands for block in rest)]
    text = f"\necho; echo '{_BETWEEN}'\n".join(parts)
    return re.sub("|".join(_PORTS), lambda port: ports[port.group()], text)


@pytest.mark.timeout(400)
def test_the_tour_prints_what_it_says(tmp_path: Path) -> None:
    ports = {port: str(free_port()) for port in _PORTS}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FAREBOX_")}
    done = subprocess.run(
        ["bash", "-c", script(ports)],
        cwd=tmp_path,
        env=clean | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=360,
    )
    printed = done.stdout
    for documented, real in ports.items():
        printed = printed.replace(f":{real}", f":{documented}")
    told = [_plain(part) for part in printed.split(_BETWEEN)]
    assert len(told) == len(blocks()), printed
    for block, part in zip(blocks(), told, strict=True):
        assert re.fullmatch(block.pattern, part, re.DOTALL), f"{block.commands}\nprinted:\n{part}"


def test_the_readme_names_every_command() -> None:
    named = set(re.findall(r"^\| `farebox (\w+)", README, re.MULTILINE))
    assert named == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_readme_shows_a_tour_worth_taking() -> None:
    assert len(blocks()) >= 8


def test_the_architecture_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tests = set(re.findall(r"`(tests/[\w/.]+)`", page))
    rooms = {
        room
        for line in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE)
        for room in re.findall(r"`(\w+)`", line)
    }
    modules = set(re.findall(r"`((?!tests/)[\w/]+/\w+\.py)`", page))
    assert len(tests) > 5
    assert len(rooms) > 10
    assert len(modules) > 25
    assert [name for name in tests if not (ROOT / name).exists()] == []
    package = ROOT / "src" / "farebox"
    assert [name for name in rooms | modules if not (package / name).exists()] == []
