"""The examples for deploying, and the page on operating, speak of what is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from prometheus_client.parser import text_string_to_metric_families

from farebox.bootstrap import Farebox
from farebox.cli import app
from farebox.cli.serve import _LAST_WORDS_S
from farebox.operating import Metrics
from farebox.operating.vitals import Verification
from farebox.payments.rail import Holding
from farebox.settings import Settings, load_settings
from tests.architecture.sources import ROOT

DEPLOY = ROOT / "examples" / "deploy"
PAGE = (ROOT / "docs" / "operating.md").read_text()
UNIT = (DEPLOY / "farebox.service").read_text()
#: Said of Prometheus's own doing.
NOT_OURS = {"up"}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def rules() -> list[dict[str, Any]]:
    [group] = read("alerts.yml")["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@cache
def commands() -> Mapping[str, Any]:
    """The commands of the command line with their options."""
    found: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return found


def options(command: str) -> set[str]:
    return {name for one in commands()[command].params for name in one.opts}


async def exposed(tmp_path: Path) -> dict[str, set[str]]:
    """Every sample's name with the names of its labels, where there is one of each thing."""
    settings = {
        "data_dir": str(tmp_path),
        "mint": [{"url": "http://127.0.0.1:9"}],
        "upstream": [{"urls": ["http://127.0.0.1:9"]}],
        "price": [{"per_request": "1 sat"}],
        "lightning": {"url": "http://127.0.0.1:9", "key": "00", "network": "bcrt"},
    }
    async with Farebox(load_settings(None, {}, settings), b"k" * 32) as house:
        house.app.carrier.tally.failed.add("upstream_slow")
        house.app.carrier.tally.ended.add("complete")
        house.operator._metrics._parts.wallet_calls.add("refund 200")
        for place in house.cashu.mints.listed():
            place.mint.calls.ends.add("swap answered")
        [watch] = house._watches
        watch.looked_at_s, watch.holdings = 0, (Holding(watch.rail.place, "BTC", 1),)
        house.vitals.verification = Verification(0, 0)
        house._deposits.moves.add("lightning credited")
        metrics: Metrics = house.operator._metrics
        text = (await metrics.exposition()).decode()
    labels: dict[str, set[str]] = {
        "farebox_operations": {"kind", "state"},
        "farebox_deposits_open": {"method", "state"},
    }
    for family in text_string_to_metric_families(text):
        labels.setdefault(family.name, set())
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


# ── alarms ───────────────────────────────────────────────────────────────────────────────────────


async def test_every_metric_of_an_alarm_exists_with_its_labels(tmp_path: Path) -> None:
    known = await exposed(tmp_path)
    for rule in rules():
        asked = re.findall(r"\b(farebox_\w+)(?:\{([^}]*)\})?", rule["expr"])
        assert asked or rule["expr"].startswith("up{")
        for name, matchers in asked:
            assert name in known, rule["alert"]
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert labels <= known[name], (rule["alert"], name)


async def test_every_metric_of_the_page_exists_and_none_is_left_out(tmp_path: Path) -> None:
    known = await exposed(tmp_path)
    told: dict[str, set[str]] = {}
    for cell in re.findall(r"(?m)^\| (`farebox_.*?) \|", PAGE):
        for name, labels in re.findall(r"`(_?\w+)(?:\{([\w,]+)\})?`", cell):
            whole = f"farebox_requests{name}" if name.startswith("_") else name
            told[whole] = set(filter(None, labels.split(",")))
    for name, labels in told.items():
        assert name in known or f"{name}_count" in known, name
        shown = known.get(f"{name}_count") or known.get(name, set())
        assert labels == shown, name
    suffixes = r"_(bucket|count|sum|created)$"
    ours = {re.sub(suffixes, "", one) for one in known if one.startswith("farebox_")}
    counters = {one for one in ours if f"{one}_total" in ours}
    assert ours - counters == set(told)


def test_every_alarm_has_its_section_and_every_section_its_alarm() -> None:
    alarms = [rule["alert"] for rule in rules()]
    page = PAGE.partition("## Alarms")[2]
    assert re.findall(r"(?m)^### (\w+)$", page) == alarms
    for section in page.split("### ")[1:]:
        assert all(word in section for word in ("**Means**", "**Run**", "**Don't**")), section
    for rule in rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"].endswith(".")


def test_every_command_of_the_page_exists_with_its_options() -> None:
    for line in re.findall(r"`farebox ([a-z][^`]*)`", PAGE):
        command, *rest = line.split()
        assert command in commands(), line
        assert {word for word in rest if word.startswith("--")} <= options(command), line


def test_every_setting_of_the_page_exists() -> None:
    example = (ROOT / "farebox.example.toml").read_text()
    sections = dict(re.findall(r"(?ms)^#?\[+(\w+)\]+\n(.*?)(?=^#?\[|\Z)", example))
    named = re.findall(r"`(gateway|ecash|rates|log|metrics|traces)\.(\w+)", PAGE)
    assert named
    for section, key in named:
        assert re.search(rf"(?m)^#{key} = ", sections[section]), f"{section}.{key}"


# ── a service, a container ───────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    farebox = Path(sys.executable).with_name("farebox")
    unit = tmp_path / "farebox.service"
    unit.write_text(UNIT.replace("/opt/farebox/bin/farebox", str(farebox)))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_starts_a_command_that_exists_and_gives_it_time_to_stop() -> None:
    [start] = re.findall(r"(?m)^ExecStart=(.*)$", UNIT)
    _, command, *flags = shlex.split(start)
    assert {flag for flag in flags if flag.startswith("--")} <= options(command)
    [stop_s] = re.findall(r"(?m)^TimeoutStopSec=(\d+)$", UNIT)
    gateway = Settings().gateway
    assert int(stop_s) > gateway.drain_s + gateway.stop_grace_s + _LAST_WORDS_S


def test_the_unit_s_command_is_read_and_its_data_are_in_a_directory_that_systemd_makes() -> None:
    values = dict(re.findall(r"(?m)^(\w+)=(.*)$", UNIT))
    program, command, *flags = shlex.split(values["ExecStart"])
    assert program == "/opt/farebox/bin/farebox"
    given = commands()[command].make_context(command, flags).params
    assert given["data"] == Path("/var/lib") / values["StateDirectory"]
    assert given["settings"] == Path("/etc/farebox/farebox.toml")
    assert values["User"] == values["Group"] == "farebox"
    assert f"useradd --system --home-dir {given['data']} farebox" in UNIT


# ── an image ─────────────────────────────────────────────────────────────────────────────────────


def instructions() -> list[tuple[str, str]]:
    """The Containerfile, an instruction after the other."""
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Containerfile").read_text())
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name]


def is_sent(path: str) -> bool:
    """Whether the image's build gets a file of the checkout: the last pattern that fits decides."""
    sent, parts = True, [path, *map(str, Path(path).parents)]
    for line in re.findall(r"(?m)^[^#\n].*$", (ROOT / ".dockerignore").read_text()):
        pattern = line.removeprefix("!").removeprefix("**/")
        if any(fnmatch(part, pattern) or part.endswith(f"/{pattern}") for part in parts):
            sent = line.startswith("!")
    return sent


def test_the_image_gets_what_the_package_is_built_of_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for needed in (project["readme"], "LICENSE", "pyproject.toml", "src/farebox/cli/serve.py"):
        assert (ROOT / needed).exists()
        assert is_sent(needed), needed
    for private in ("farebox.toml", "farebox-data/root.key", ".git/config", ".venv/bin/python"):
        assert not is_sent(private), private
    assert not is_sent("src/farebox/__pycache__/x.pyc")
    [build] = [rest for name, rest in instructions() if "pip install" in rest]
    [extra] = re.findall(r'"/src\[(\w+)\]"', build)
    assert extra in project["optional-dependencies"]


def test_the_image_runs_the_server_as_a_user_that_owns_nothing_but_the_books() -> None:
    told = instructions()
    last = max(at for at, (name, _) in enumerate(told) if name == "FROM")
    stages = {rest.split(" AS ")[1] for name, rest in told if " AS " in rest}
    final = dict(told[last:])
    for name, rest in told:
        if name == "COPY" and "--from=" in rest:
            assert re.findall(r"--from=(\w+)", rest)[0] in stages
    user = final["USER"]
    assert user not in ("root", "0")
    assert re.search(rf"useradd .*--uid \d+ .*{user}", final["RUN"])
    assert f"--owner {user} --mode 0700 {final['VOLUME']}" in final["RUN"]
    assert f"FAREBOX_DATA_DIR={final['VOLUME']} " in final["ENV"]
    assert json.loads(final["ENTRYPOINT"]) == ["farebox"]
    [command] = json.loads(final["CMD"])
    assert command in commands()


def test_the_containers_of_the_compose_file_fit_the_image() -> None:
    final = dict(instructions())
    service = read("compose.yaml")["services"]["farebox"]
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).exists()
    assert service["volumes"] == [f"books:{final['VOLUME']}"]
    assert "books" in read("compose.yaml")["volumes"]
    command, *flags = service["command"]
    assert commands()[command].make_context(command, flags).params["price"] == "10 sat"
    asked = re.search(r'"http://127\.0\.0\.1:(\d+)(/\w+)"', service["healthcheck"]["test"][3])
    assert asked is not None
    assert asked[1] in final["EXPOSE"].split()
    assert f"FAREBOX_METRICS__LISTEN=0.0.0.0:{asked[1]} " in final["ENV"]
    assert f"`{asked[2]}`" in PAGE.partition("### Probes")[2].partition("### ")[0]


def test_the_compose_file_s_settings_are_accepted_with_the_image_s() -> None:
    image = dict(re.findall(r"(FAREBOX_\w+)=(\S+)", (DEPLOY / "Containerfile").read_text()))
    service = read("compose.yaml")["services"]["farebox"]
    _, flag, price = service["command"]
    assert service["command"][0] in commands()
    assert {flag} <= options("serve")
    found = load_settings(None, image | service["environment"], {"price": [{"price": price}]})
    assert (str(found.gateway.listen), str(found.metrics.listen)) == (
        "0.0.0.0:8080",
        "0.0.0.0:9464",
    )
    assert found.upstreams
    assert found.mints
    [port] = service["ports"]
    assert port.startswith("127.0.0.1:")
    grace_s = found.gateway.drain_s + found.gateway.stop_grace_s + _LAST_WORDS_S
    assert int(service["stop_grace_period"].removesuffix("s")) > grace_s
    compile(service["healthcheck"]["test"][3], "healthcheck", "exec")


def test_prometheus_asks_where_the_container_tells_and_knows_the_alarms() -> None:
    asked = read("prometheus.yml")
    [job] = asked["scrape_configs"]
    assert job["job_name"] == "farebox"
    assert job["static_configs"][0]["targets"] == ["farebox:9464"]
    mounted = read("compose.yaml")["services"]["prometheus"]["volumes"]
    for volume in mounted:
        assert (DEPLOY / volume.partition(":")[0]).exists()
    assert asked["rule_files"] == ["alerts.yml"]
