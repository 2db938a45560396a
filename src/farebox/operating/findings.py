"""What a look at something found, as `farebox doctor` and `/readyz` tell it."""

from __future__ import annotations

import enum
import shutil
from dataclasses import dataclass
from pathlib import Path

_SPACE_LOW_BYTES = 1 << 30
_SPACE_LEAST_BYTES = 100 << 20
_MIB = 1 << 20


class Verdict(enum.Enum):
    """How bad it is."""

    FINE = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; `advice` is empty where there is nothing to do."""

    verdict: Verdict
    check: str
    found: str
    advice: str = ""


def fine(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(Verdict.FINE, check, found)


def free_bytes(path: Path) -> int:
    """How much the disk under a directory can take; the directory need not be there yet."""
    return shutil.disk_usage(existing(path)).free


def disk_space(free: int) -> Finding:
    """Whether the book can grow."""
    found = f"{free // _MIB:,} MiB free"
    if free < _SPACE_LEAST_BYTES:
        advice = "make room: a full disk stops every payment before it moves money"
        return Finding(Verdict.FAILURE, "disk space", found, advice)
    if free < _SPACE_LOW_BYTES:
        return Finding(Verdict.WARNING, "disk space", found, "make room soon")
    return fine("disk space", found)


def existing(path: Path) -> Path:
    """The directory, or the nearest one above it that exists."""
    absolute = path.absolute()
    return next(one for one in (absolute, *absolute.parents) if one.is_dir())
