"""What receipts say must be what the books say, but for answers that were lost."""

from __future__ import annotations

import pytest

from farebox.cli.bench.caller import _owed
from farebox.cli.bench.openloop import Kind
from farebox.cli.bench.report import Charges
from farebox.cli.bench.tally import Tally
from farebox.cli.bench.target import Reply
from farebox.cli.receipts import Receipt

MAXIMUM_MSAT = {Kind.KEY: 10, Kind.ECASH: 100}


def charges(lost: int, key_msat: int | None, books_msat: int | None) -> Charges:
    tally = Tally()
    tally.of(Kind.KEY).charged_msat = 1_000
    tally.of(Kind.ECASH).charged_msat = 500
    for _ in range(lost):
        tally.of(Kind.KEY).failed("the connection broke", is_unknown=True)
    return Charges.of(tally, MAXIMUM_MSAT, key_msat=key_msat, books_msat=books_msat)


@pytest.mark.parametrize(
    ("lost", "key_msat", "books_msat", "agree"),
    [
        (0, 1_000, 1_500, True),
        (0, None, None, True),
        (0, 1_000, 1_501, False),
        (0, 1_000, 1_499, False),
        (0, 1_001, 1_500, False),
        (0, 999, 1_500, False),
        (2, 1_020, 1_520, True),
        (2, 1_000, 1_500, True),
        (2, 1_021, 1_521, False),
        (2, 999, 1_500, False),
    ],
)
def test_sums_agree_to_within_what_lost_answers_can_have_cost(
    lost: int, key_msat: int | None, books_msat: int | None, agree: bool
) -> None:
    assert charges(lost, key_msat, books_msat).agree is agree


@pytest.mark.parametrize(
    ("change", "receipt", "kept"),
    [
        ("cashuB-change", Receipt(1, 9, 0), ["cashuB-change"]),
        ("cashuB-change", Receipt(1, 8, 1), ["cashuB-change", "cashuB-token"]),
        ("", Receipt(1, 9, 0), ["", "cashuB-token"]),  # too long for a header
        ("", Receipt(10, 0, 0), [""]),
        ("creqA-terms", None, ["cashuB-token"]),  # a refusal, or an answer nobody settled
    ],
)
def test_whatever_comes_back_of_a_token_is_kept(
    change: str, receipt: Receipt | None, kept: list[str]
) -> None:
    reply = Reply(200, {"x-cashu": change} if change else {}, b"", 0)
    assert _owed(reply, receipt, "cashuB-token") == kept


def test_a_server_that_invents_codes_fills_no_memory() -> None:
    counted = Tally().of(Kind.KEY)
    for number in range(1_000):
        counted.failed(f"400 code_{number}", is_unknown=False)
    assert len(counted.errors) <= 51
    assert counted.errors.total() == 1_000
