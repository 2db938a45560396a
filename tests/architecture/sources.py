"""The project's own files, as the architecture tests read them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "farebox"


@dataclass(frozen=True)
class Source:
    """A Python file."""

    path: Path
    text: str

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree; made anew each time, for that of a repository is large."""
        return ast.parse(self.text, str(self.path))

    @property
    def name(self) -> str:
        """The path within the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def room(self) -> str:
        """The first part of the path within the package: "ledger", or "money.py"."""
        return self.path.relative_to(PACKAGE).parts[0]

    def at(self, node: ast.expr | ast.stmt) -> str:
        """Where a node stands, as an editor understands it."""
        return f"{self.name}:{node.lineno}"


@cache
def package_sources() -> tuple[Source, ...]:
    """Every module of the package."""
    return tuple(Source(path, path.read_text()) for path in sorted(PACKAGE.rglob("*.py")))


@cache
def all_sources() -> tuple[Source, ...]:
    """Every Python file of the repository."""
    return tuple(Source(path, path.read_text()) for path in tracked_files() if path.suffix == ".py")


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file that git knows; everything that is not hidden where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=120
        ).stdout.decode()
        found = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = [p for p in ROOT.rglob("*") if not any(part[0] == "." for part in p.parts[1:])]
    return tuple(path for path in found if path.is_file())


def rooms() -> Iterator[Path]:
    """Every room: a package right beneath `farebox`."""
    return (path.parent for path in sorted(PACKAGE.glob("*/__init__.py")))
