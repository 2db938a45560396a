"""The steps that the systemd unit tells, followed in a directory that stands for the machine."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.world import Mint, Server, call, farebox, start_server
from tests.architecture.sources import ROOT

UNIT = (ROOT / "examples" / "deploy" / "farebox.service").read_text()
PROGRAM = "/opt/farebox/bin/farebox"
#: What makes a user, a place for the package and a service of a real machine.
OF_THE_MACHINE = ("useradd", "python3", "/opt/farebox/bin/pip", "systemctl")


def steps(machine: Path) -> list[list[str]]:
    """What is to be typed, with the directories of that machine and its one user."""
    told = re.findall(r"(?m)^#   (\w.*|/opt.*)$", UNIT)
    typed = [re.sub(r" {4,}\(.*\)$", "", line) for line in told]
    here = [re.sub(r"(?<![\w.])/(etc|var)/", rf"{machine}/\1/", line) for line in typed]
    mine = [line.replace(" --owner farebox", "") for line in here]
    return [shlex.split(line.removeprefix("runuser -u farebox -- ")) for line in mine]


@contextmanager
def started(machine: Path) -> Iterator[Server]:
    """The service, as systemd would start it, but for its port."""
    [command] = re.findall(r"(?m)^ExecStart=(.*)$", UNIT)
    program, serve, *flags = shlex.split(re.sub(r" /(etc|var)/", rf" {machine}/\1/", command))
    assert (program, serve) == (PROGRAM, "serve")
    server = start_server([*flags, "--listen", "127.0.0.1:0"], machine)
    try:
        yield server
    finally:
        assert server.stop() == 0


def test_the_steps_of_the_unit_lead_to_a_service_that_sells(
    tmp_path: Path, mint: Mint, upstream: str
) -> None:
    for name in ("etc", "var/lib"):
        (tmp_path / name).mkdir(parents=True)
    doctor: list[str] = []
    for program, *arguments in steps(tmp_path):
        if program == PROGRAM and arguments[0] == "doctor":
            doctor = arguments
        elif program == PROGRAM:
            assert farebox(*arguments, cwd=tmp_path).code == 0, arguments
        elif program == "install":
            subprocess.run([program, *arguments], check=True, timeout=60)
        else:
            assert program in OF_THE_MACHINE, program
    file = tmp_path / "etc" / "farebox" / "farebox.toml"
    (file.parent / "upstream.key").write_text("secret\n")
    filled = f'''
[[upstream]]
urls = "{upstream}"
headers = {{ Authorization = {{ file = "upstream.key", prefix = "Bearer " }} }}
[[mint]]
url = "{mint.url}"
[[price]]
price = "10 sat"
'''
    file.write_text(file.read_text() + filled)
    with started(tmp_path) as server:
        assert server.data == tmp_path / "var" / "lib" / "farebox"
        paid = call(f"{server.url}/echo", {"X-Cashu": mint.token(16)})
        assert paid.status == 200
        assert farebox(*doctor, cwd=tmp_path).code == 0
    assert (server.data / "root.key").stat().st_mode & 0o777 == 0o600
    assert server.data.stat().st_mode & 0o777 == 0o700
