"""The documents say what is there."""

from __future__ import annotations

import re
import tomllib

from tests.architecture.sources import ROOT, tracked_files

LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def test_every_link_within_the_repository_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)} -> {target}"
        for page in tracked_files()
        if page.suffix == ".md"
        for target in LINK.findall(page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_decision_is_listed() -> None:
    pages = {path.name for path in (ROOT / "docs/adr").glob("0*.md")} - {"0000-template.md"}
    assert set(LINK.findall((ROOT / "docs/adr/README.md").read_text())) == pages


def test_every_command_of_the_makefile_is_listed_by_make_help() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"(?m)^\.PHONY: (\S+)$", text))
    assert phony == set(re.findall(r"(?m)^([a-z]+):.*## ", text))


def test_the_licence_is_the_one_that_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (ROOT / "LICENSE").read_text().startswith(f"{project['license']} License")
