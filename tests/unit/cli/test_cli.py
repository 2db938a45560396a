from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farebox.cli import main
from farebox.cli.output import progress
from farebox.pricing.parse import parse_rules
from farebox.settings import load_settings, read_root_key, render_default_settings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a directory of its own: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        assert isinstance(left.value.code, int)
        out, error = capfd.readouterr()
        return left.value.code, out, error

    return run


def test_init_writes_a_file_that_is_read_back_as_the_defaults(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("init")
    assert code == 0
    assert "root.key" in out
    assert Path("farebox.toml").read_text() == render_default_settings()
    settings = load_settings(Path("farebox.toml"), {}, {})
    assert settings.data_dir == tmp_path / "farebox-data"
    assert len(read_root_key(settings.data_dir, {})) == 32
    assert os.stat("farebox.toml").st_mode & 0o777 == 0o600


def test_init_writes_what_was_chosen(run: Run, tmp_path: Path) -> None:
    chosen = ["--upstream", "http://u", "--mint", "https://m", "--mint", "https://n"]
    chosen += ["--price", "10 sat", "--listen", "0.0.0.0:80", "--data", "books"]
    code, out, _ = run("init", "mine.toml", *chosen, "--json")
    assert code == 0
    assert json.loads(out) == {
        "settings": "mine.toml",
        "data_dir": str(tmp_path / "books"),
        "root_key": str(tmp_path / "books" / "root.key"),
    }
    settings = load_settings(Path("mine.toml"), {}, {})
    assert settings.upstreams[0].urls == ("http://u",)
    assert [mint.url for mint in settings.mints] == ["https://m", "https://n"]
    assert settings.prices == ({"price": "10 sat"},)
    assert settings.gateway.listen.port == 80
    assert settings.data_dir == tmp_path / "books"


def test_init_overwrites_nothing(run: Run) -> None:
    Path("farebox.toml").write_text("mine")
    code, out, error = run("init")
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert Path("farebox.toml").read_text() == "mine"
    assert not Path("farebox-data").exists()


@pytest.mark.parametrize(
    "wrong", [["--listen", "x"], ["--mint", "x"], ["--price", "ten"], ["--upstream", "x"]]
)
def test_init_leaves_nothing_behind_when_a_choice_is_wrong(wrong: list[str], run: Run) -> None:
    code, out, error = run("init", *wrong)
    assert (code, out) == (2, "")
    assert error.startswith("error: setting ")
    assert os.listdir() == []


def test_init_that_finds_no_place_for_its_data_can_be_called_again(run: Run) -> None:
    Path("full").write_text("a file, where a directory is asked for")
    code, out, error = run("init", "--data", "full/data")
    assert (code, out) == (2, "")
    assert error.startswith("error: setting data_dir")
    assert os.listdir() == ["full"]
    assert run("init", "--data", "data")[0] == 0


def test_init_that_finds_no_place_for_its_file_makes_no_data(run: Run) -> None:
    code, out, error = run("init", "nowhere/farebox.toml", "--data", "data")
    assert (code, out) == (2, "")
    assert "No such file or directory" in error
    assert os.listdir() == []


def test_the_root_key_is_never_on_the_screen(run: Run) -> None:
    _, out, error = run("init")
    key = Path("farebox-data/root.key").read_text().strip()
    assert key not in out + error


def test_a_mistake_in_the_command_is_code_2_and_no_traceback(run: Run) -> None:
    for wrong in (["nonsense"], ["init", "--nonsense"]):
        code, out, error = run(*wrong)
        assert (code, out) == (2, "")
        assert "Traceback" not in error


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "farebox", "--version"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert out.startswith("farebox ")


def test_the_price_in_the_example_file_is_one() -> None:
    commented = render_default_settings().partition("#[[price]]\n")[2].splitlines()
    table = dict(line[1:].split(" = ") for line in commented[: commented.index("")])
    assert parse_rules([{key: json.loads(value) for key, value in table.items()}])


def test_whoever_asks_a_running_server_loads_no_house() -> None:
    code = "import sys, farebox.cli.keys; print({'litestar', 'aiohttp'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class _Full(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_log_stops_nothing_and_a_full_screen_is_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", _Full())
        progress("stopping: …")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", _Full())
        code, _, error = run("init")
    assert (code, error) == (2, "error: [Errno 28] No space left on device\n")
