"""requirements.lock holds what pyproject.toml asks for: whole, by hash, and nothing else."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()

PINS = {
    canonicalize_name(name): (version, entry)
    for name, version, entry in re.findall(
        r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)((?:.*\\\n)?(?:[ \t]+.*(?:\n|$))*)",
        LOCK,
        re.MULTILINE,
    )
}


def asked_for() -> list[Requirement]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for group in (project["dependencies"], *extras) for text in group]


def test_what_is_asked_for_is_pinned_to_a_version_that_fits() -> None:
    unfit = [
        str(wanted)
        for wanted in asked_for()
        if (name := canonicalize_name(wanted.name)) not in PINS
        or not wanted.specifier.contains(PINS[name][0], prereleases=True)
    ]
    assert unfit == [], "run `make lock`"


def test_nothing_is_pinned_that_is_no_longer_asked_for() -> None:
    direct = {name for name, (_, entry) in PINS.items() if "farebox (pyproject.toml)" in entry}
    assert direct == {canonicalize_name(wanted.name) for wanted in asked_for()}, "run `make lock`"


def test_what_builds_the_package_is_pinned_as_well() -> None:
    build = {Requirement(text).name for text in PROJECT["build-system"]["requires"]}
    assert build <= set(PINS)


def test_every_pin_has_hashes_and_no_address() -> None:
    assert len(PINS) == len(re.findall(r"^[^\s#]", LOCK, re.MULTILINE))
    assert [name for name, (_, entry) in PINS.items() if "--hash=sha256:" not in entry] == []
    assert not re.search(r"://|--index|--find-links| @ ", LOCK)
