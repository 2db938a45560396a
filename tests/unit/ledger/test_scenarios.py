"""Runs the scenarios of docs/ledger.md, line by line, on the pure evaluator."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from farebox.clock import NS_PER_S
from farebox.ledger.evaluator import Decision, Overlay, evaluate, expire
from farebox.ledger.model import (
    CREDIT_LIMITED,
    EXPIRY_PREFIX,
    Account,
    Balancing,
    Hold,
    HoldState,
    Kind,
    Open,
    Post,
    Refused,
    SetCeiling,
    Step,
    Transfer,
    Unit,
    Void,
    hold_id,
)

PAGE = Path(__file__).parents[3] / "docs" / "ledger.md"
CREDIT_NORMAL = CREDIT_LIMITED | {Kind.SUSPENSE}


@dataclass
class Scenario:
    """A small book, and the names that the notation gives to its holds."""

    overlay: Overlay = field(
        default_factory=lambda: Overlay(accounts=defaultdict(lambda: None), holds=defaultdict())
    )
    holds: dict[str, str] = field(default_factory=dict)
    seq: int = 0
    at: int = NS_PER_S

    def run(self, text: str) -> None:
        """Every line, or the lines of one unit together. Raises AssertionError with the line."""
        unit: list[str] = []
        for line in [*(line.strip() for line in text.splitlines()), ""]:
            if unit and not line.startswith("+"):
                self.commit(unit)
                unit = []
            verb = line.partition(" ")[0]
            if verb in ("wait", "balance", "available"):
                self.check(line)
            elif line:
                unit.append(line.removeprefix("+ "))
        self.check_balanced()

    def commit(self, lines: list[str]) -> None:
        last, _, code = lines[-1].partition(" -> ")
        self.seq += 1
        self.at += 1
        unit_id = f"unit{self.seq}"
        texts = [*lines[:-1], last]
        steps = tuple(self.step(text, hold_id(unit_id, n)) for n, text in enumerate(texts))
        self.release_due()
        told = evaluate(Unit(unit_id, steps), self.overlay, self.seq, self.at)
        found = told.code if isinstance(told, Refused) else ""
        assert isinstance(told, Decision | Refused), lines
        assert found == code, f"{' / '.join(lines)}: {found or 'applied'}"

    def step(self, text: str, new_hold: str) -> Step:
        match text.split():
            case ["open", name, asset, kind]:
                return Open(name, asset, Kind(kind))
            case ["ceiling", name, amount]:
                return SetCeiling(name, None if amount == "none" else int(amount))
            case ["transfer", debit, credit, "at", "most", amount, "of", side]:
                return Transfer(debit, credit, int(amount), "x", Balancing(side))
            case ["transfer", debit, credit, amount]:
                return Transfer(debit, credit, int(amount), "x")
            case ["hold", name, debit, credit, amount, *timeout]:
                self.holds[name] = new_hold
                self.overlay.holds.setdefault(new_hold, None)
                timeout_ns = seconds(timeout[1]) if timeout else 0
                return Hold(debit, credit, int(amount), "x", timeout_ns)
            case ["post", name, *amounts]:
                return Post(self.holds[name], int(amounts[0]) if amounts else None)
            case ["void", name]:
                return Void(self.holds[name])
        raise AssertionError(f"not in the notation: {text}")

    def check(self, line: str) -> None:
        verb, *rest = line.split()
        if verb == "wait":
            self.at += seconds(rest[0])
            return
        account = self.account(rest[0])
        found = account.available
        if verb == "balance":
            sign = -1 if account.kind in CREDIT_NORMAL else 1
            found = sign * account.held
        assert found == int(rest[1]), f"{line}: found {found}"

    def account(self, name: str) -> Account:
        found = self.overlay.accounts[name]
        assert found is not None, name
        return found

    def release_due(self) -> None:
        for row in list(self.overlay.holds.values()):
            if row and row.state is HoldState.OPEN and 0 < row.expires_at <= self.at:
                expire(row, self.overlay, Unit(EXPIRY_PREFIX + row.id), self.seq, self.at)

    def check_balanced(self) -> None:
        accounts = [account for account in self.overlay.accounts.values() if account]
        assert sum(account.held for account in accounts) == 0
        assert sum(a.debits_pending - a.credits_pending for a in accounts) == 0


def seconds(text: str) -> int:
    return int(text.removesuffix("s")) * NS_PER_S


BLOCKS = re.findall(r"```ledger\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_the_scenario_on_the_page_is_what_the_ledger_does(block: str) -> None:
    Scenario().run(block)


def test_the_page_has_scenarios_and_lists_every_kind_of_account() -> None:
    assert len(BLOCKS) >= 10
    for kind in Kind:
        assert f"| `{kind}` |" in PAGE.read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        "open a BTC customer\nbalance a 1",
        "open a BTC customer\nopen b BTC customer\ntransfer a b 1",
        "open c BTC custody\nopen a BTC customer\ntransfer c a 1 -> exceeds_credits",
        "jump a b 1",
    ],
)
def test_a_scenario_that_is_wrong_fails(wrong: str) -> None:
    with pytest.raises(AssertionError):
        Scenario().run(wrong)
