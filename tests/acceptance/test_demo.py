"""`farebox demo`: the whole story, as a stranger's first look."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.world import farebox

FACTS = {
    "unpaid_status",
    "paid_requests",
    "streamed_requests",
    "charged_msat",
    "change_msat",
    "refunded_msat",
    "mint_calls_per_paid_request",
    "books_balanced",
    "custody_covers_liabilities",
    "seconds",
}


def test_the_demo_prints_one_object_whose_numbers_agree(tmp_path: Path) -> None:
    facts = farebox("demo", "--json", cwd=tmp_path).json()
    assert set(facts) == FACTS
    assert facts["unpaid_status"] == 402
    assert facts["mint_calls_per_paid_request"] == 1
    assert (facts["books_balanced"], facts["custody_covers_liabilities"]) == (True, True)
    assert facts["paid_requests"] > facts["streamed_requests"] > 0
    assert min(facts["charged_msat"], facts["change_msat"], facts["refunded_msat"]) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_demo_tells_its_story_to_people(tmp_path: Path) -> None:
    told = farebox("demo", cwd=tmp_path)
    assert told.code == 0
    assert told.error == ""
    for part in ("402 Payment required", "change", "streamed", "refunded", "The books balance"):
        assert part in told.out
    assert "\x1b" not in told.out  # colours are for terminals
