"""`farebox verify`: prove that the books balance and that nobody has touched them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from farebox.books import book_place, open_audit
from farebox.cli.book import require_book
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, columns, progress, sat, show
from farebox.errors import InvalidInput
from farebox.ledger.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    open_checkpoint,
    seal_checkpoint,
)
from farebox.ledger.invariants import Verified
from farebox.ledger.invariants import verify as verify_book
from farebox.ledger.replay import Broken, Invariant
from farebox.money import BTC
from farebox.settings import Settings, read_root_key
from farebox.signer import Signer

_EXIT_BROKEN = 1
_WAYS_OUT = {
    # The books are whole then, and money is missing.
    Invariant.COVER: "see `When something was lost` in docs/operating.md",
    Invariant.MEDIUM: "see `When the file is damaged` in docs/operating.md",
}
_PROGRESS_EVERY = 100_000


def verify(
    since_last: Annotated[
        bool, typer.Option("--since-last", help="Only what came after the last verify.")
    ] = False,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every invariant and the audit chain, also while a server runs."""
    found = read_settings(settings, data)
    require_book(found)
    vouched = _Vouched(found)
    result = check_book(found, vouched.read() if since_last else Checkpoint())
    if not isinstance(result, Broken):
        vouched.write(result[1])
    show(verdict_facts(result), verdict_text(result), as_json=as_json)
    if isinstance(result, Broken):
        raise typer.Exit(_EXIT_BROKEN)


Verdict = tuple[Verified, Checkpoint] | Broken


def check_book(found: Settings, start: Checkpoint = Checkpoint()) -> Verdict:  # noqa: B008 - frozen
    """Check the book of these settings from `start` on, whether or not a server runs on it."""
    with open_audit(found) as reader:
        progress(f"verifying {reader.last_seq() - start.seq:,} units of {book_place(found)} …")
        return verify_book(reader, start, _say)


def verdict_facts(verdict: Verdict) -> dict[str, object]:
    """What `--json` tells of it."""
    return _broken_facts(verdict) if isinstance(verdict, Broken) else _facts(verdict[0])


def verdict_text(verdict: Verdict) -> str:
    """What people are told of it."""
    if isinstance(verdict, Broken):
        way_out = _WAYS_OUT.get(verdict.invariant, "")
        return f"BROKEN: {verdict.invariant}\n{verdict}\n{way_out}".rstrip()
    return _text(verdict[0])


def _say(seq: int) -> None:
    if not seq % _PROGRESS_EVERY:
        progress(f"{seq:,} units …")


class _Vouched:
    """The checkpoint of the last verify, sealed with a key of the root key's."""

    def __init__(self, settings: Settings) -> None:
        self._path: Path = settings.data_dir / CHECKPOINT_FILE
        self._key = Signer(read_root_key(settings.data_dir, os.environ)).derive("checkpoint")

    def read(self) -> Checkpoint:
        try:
            return open_checkpoint(self._path.read_bytes(), self._key)
        except FileNotFoundError:
            return Checkpoint()
        except OSError as error:
            raise InvalidInput(f"cannot read {self._path}: {error.strerror}") from None

    def write(self, checkpoint: Checkpoint) -> None:
        draft = self._path.with_suffix(".draft")
        try:
            draft.write_bytes(seal_checkpoint(checkpoint, self._key))
            draft.replace(self._path)
        except OSError as error:
            progress(f"the book is whole, but {self._path} cannot be written: {error.strerror}")


def _facts(verified: Verified) -> dict[str, object]:
    return {
        "ok": True,
        "units": verified.seq,
        "events": verified.events,
        "accounts": verified.accounts,
        "open_holds": verified.open_holds,
        "digest": verified.digest.hex(),
        "cover": {
            asset: {
                "custody": str(cover.custody),
                "owed": str(cover.owed),
                "exchanged": str(cover.exchanged),
            }
            for asset, cover in verified.cover.items()
        },
    }


def _broken_facts(broken: Broken) -> dict[str, object]:
    return {
        "ok": False,
        "invariant": broken.invariant.value,
        "where": broken.where,
        "expected": broken.expected,
        "found": broken.found,
    }


def _text(verified: Verified) -> str:
    rows = [
        ("units", f"{verified.seq:,}, chained without a gap"),
        ("events", f"{verified.events:,}"),
        ("accounts", f"{verified.accounts:,}, as the units made them"),
        ("open holds", f"{verified.open_holds:,}"),
    ]
    for asset, cover in verified.cover.items():
        shown = sat if asset == BTC.code else str
        held = f"{shown(cover.custody)} in custody, {shown(cover.owed)} owed"
        if cover.exchanged:
            held += f", {shown(cover.exchanged)} given for other assets"
        rows.append((asset, held))
    return f"{columns(rows)}\ndigest {verified.digest.hex()}\nthe books balance"
