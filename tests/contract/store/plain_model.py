"""The ledger's rules once more, as plainly as they can be said: dicts of ints, no sharing of code.

Slow and obvious on purpose. Nothing here is imported from the evaluator.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from farebox.ledger.model import Hold, Open, Post, SetCeiling, Transfer, Unit, Void

CREDIT_SIDE = ("customer", "immature", "escrow", "revenue", "breakage")
DEBIT_SIDE = ("custody", "receivable")
TOO_MUCH = 2**127


def copied(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {key: dict(row) for key, row in rows.items()}


class No(Exception):
    """A step is refused, with this code."""


@dataclass
class Books:
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    holds: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)
    told: dict[str, tuple[bytes, Any]] = field(default_factory=dict)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    units: int = 0

    def commit(self, unit: Unit, now: int) -> Any:
        """What the store must answer: ("applied", amounts), ("refused", step, code), …"""
        if unit.id in self.told:
            fingerprint, answer = self.told[unit.id]
            return ("replayed", answer) if fingerprint == unit.fingerprint else ("mismatch",)
        for put in unit.puts:
            if self.version(put) != put.expect:
                return ("taken" if put.expect == 0 else "stale", put.record.kind, put.key)
        for guard in unit.guards:
            if self.version(guard) != guard.version:
                return ("stale", guard.record.kind, guard.key)
        trial = replace(self, accounts=copied(self.accounts), holds=copied(self.holds))
        amounts: list[int] = []
        for number, step in enumerate(unit.steps):
            try:
                amounts.append(trial.do(step, f"{unit.id}/{number}", now))
            except No as no:
                answer = ("refused", number, str(no))
                if unit.sticky:
                    self.told[unit.id] = (unit.fingerprint, answer)
                    self.units += 1
                return answer
        # From here on nothing can fail, and rows, answers and events may be shared.
        for put in unit.puts:
            trial.rows[put.record.kind, put.key] = (put.expect + 1, put.value)
        for event in unit.events:
            data = dict(event.data) | {k: amounts[step] for k, step in event.amounts.items()}
            trial.events.append((event.name, event.subject, data))
        answer = ("applied", tuple(amounts))
        trial.told[unit.id] = (unit.fingerprint, answer)
        trial.units += 1
        self.__dict__ = trial.__dict__
        return answer

    def version(self, named: Any) -> int:
        return self.rows.get((named.record.kind, named.key), (0, None))[0]

    def expire(self, now: int, touched: set[str] | None = None) -> None:
        """Release what is due; of the touched accounts only, when they are given."""
        for hold in self.holds.values():
            if hold["state"] != "open" or not 0 < hold["until"] <= now:
                continue
            if touched is None or {hold["debit"], hold["credit"]} & touched:
                self.close(hold, 0, "expired")
                self.units += 1

    def touched(self, unit: Unit) -> set[str]:
        """The accounts that a unit names, by itself or by a hold."""
        names: set[str] = set()
        for step in unit.steps:
            named: Any = self.holds.get(step.hold) if isinstance(step, Post | Void) else step
            for side in ("debit", "credit", "account"):
                name = named.get(side) if isinstance(named, dict) else getattr(named, side, None)
                names |= {name} if name else set()
        return names

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def do(self, step: Any, hold_id: str, now: int) -> int:
        match step:
            case Open():
                self.open(step)
            case SetCeiling():
                self.set_ceiling(step)
            case Transfer():
                return self.transfer(step)
            case Hold():
                debtor, creditor = self.pair(step)
                debtor["dp"] += step.amount
                creditor["cp"] += step.amount
                self.limits(debtor, creditor)
                until = now + step.timeout_ns if step.timeout_ns else 0
                hold = {"debit": step.debit, "credit": step.credit, "amount": step.amount}
                self.holds[hold_id] = hold | {"until": until, "state": "open"}
                return step.amount
            case Post():
                return self.resolve(step.hold, step.amount, "posted")
            case Void():
                return self.resolve(step.hold, 0, "voided")
        return 0

    def open(self, step: Open) -> None:
        known = self.accounts.setdefault(
            step.account,
            {"asset": step.asset, "kind": str(step.kind), "top": None}
            | {"dp": 0, "d": 0, "cp": 0, "c": 0},
        )
        if known["asset"] != step.asset:
            raise No("exists_with_different_asset")
        if known["kind"] != step.kind:
            raise No("exists_with_different_kind")

    def set_ceiling(self, step: SetCeiling) -> None:
        if step.ceiling is not None and not 0 <= step.ceiling < TOO_MUCH:
            raise No("amount_out_of_range")
        if step.account not in self.accounts:
            raise No("account_not_found")
        if self.accounts[step.account]["kind"] not in DEBIT_SIDE:
            raise No("ceiling_not_allowed")
        self.accounts[step.account]["top"] = step.ceiling

    def pair(self, step: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if not 0 <= step.amount < TOO_MUCH:
            raise No("amount_out_of_range")
        if step.debit == step.credit:
            raise No("accounts_must_be_different")
        if step.debit not in self.accounts:
            raise No("debit_account_not_found")
        if step.credit not in self.accounts:
            raise No("credit_account_not_found")
        debtor, creditor = self.accounts[step.debit], self.accounts[step.credit]
        if debtor["asset"] != creditor["asset"]:
            raise No("accounts_must_have_the_same_asset")
        return debtor, creditor

    def transfer(self, step: Transfer) -> int:
        debtor, creditor = self.pair(step)
        amount = step.amount
        if step.balancing == "debit":
            amount = max(0, min(amount, debtor["c"] - debtor["d"] - debtor["dp"]))
        elif step.balancing == "credit":
            amount = max(0, min(amount, creditor["d"] - creditor["c"] - creditor["cp"]))
        debtor["d"] += amount
        creditor["c"] += amount
        self.limits(debtor, creditor)
        return amount

    def limits(self, debtor: dict[str, Any], creditor: dict[str, Any]) -> None:
        if debtor["dp"] + debtor["d"] >= TOO_MUCH or creditor["cp"] + creditor["c"] >= TOO_MUCH:
            raise No("overflows_account")
        if debtor["kind"] in CREDIT_SIDE and debtor["dp"] + debtor["d"] > debtor["c"]:
            raise No("exceeds_credits")
        if creditor["kind"] in DEBIT_SIDE and creditor["cp"] + creditor["c"] > creditor["d"]:
            raise No("exceeds_debits")
        top = debtor["top"]
        if top is not None and debtor["dp"] + debtor["d"] - debtor["c"] > top:
            raise No("exceeds_ceiling")

    def resolve(self, hold_id: str, amount: int | None, state: str) -> int:
        if amount is not None and not 0 <= amount < TOO_MUCH:
            raise No("amount_out_of_range")
        hold = self.holds.get(hold_id)
        if hold is None:
            raise No("pending_transfer_not_found")
        if hold["state"] == "expired":
            raise No("pending_transfer_expired")
        if hold["state"] != "open":
            raise No(f"pending_transfer_already_{hold['state']}")
        taken = hold["amount"] if amount is None else amount
        if taken > hold["amount"]:
            raise No("exceeds_pending_transfer_amount")
        self.close(hold, taken, state)
        return int(taken)

    def close(self, hold: dict[str, Any], taken: int, state: str) -> None:
        debtor, creditor = self.accounts[hold["debit"]], self.accounts[hold["credit"]]
        debtor["dp"] -= hold["amount"]
        debtor["d"] += taken
        creditor["cp"] -= hold["amount"]
        creditor["c"] += taken
        hold["state"] = state
