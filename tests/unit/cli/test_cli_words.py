"""How the command line reads amounts and durations, and writes amounts and columns."""

from __future__ import annotations

import pytest

from farebox.cli.options import amount_msat, duration_ns
from farebox.cli.output import columns, sat
from farebox.cli.verify import verdict_text
from farebox.clock import NS_PER_S
from farebox.errors import InvalidInput
from farebox.ledger.replay import Broken, Invariant


@pytest.mark.parametrize(
    ("text", "msat"), [("100 sat", 100_000), ("0.5 sat", 500), ("7 msat", 7), (" 1  sat ", 1_000)]
)
def test_amounts_are_read_exactly(text: str, msat: int) -> None:
    assert amount_msat(text) == msat


@pytest.mark.parametrize("text", ["", "100", "sat", "1 btc", "-1 sat", "0.0001 sat", "1.5 msat"])
def test_what_is_no_amount_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput):
        amount_msat(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)]
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert duration_ns(text) == seconds * NS_PER_S


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "1y", "-1d", "1.5h"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput, match='write "90s"'):
        duration_ns(text)
    with pytest.raises(InvalidInput, match="hundred years"):
        duration_ns("999999999w")


@pytest.mark.parametrize(
    ("msat", "text"),
    [(0, "0 sat"), (1, "0.001 sat"), (1_234_500, "1,234.5 sat"), (-2_000, "-2 sat")],
)
def test_amounts_are_written_exactly(msat: int, text: str) -> None:
    assert sat(msat) == text


def test_columns_are_aligned_and_lines_end_where_their_text_does() -> None:
    assert columns([("a", "1", ""), ("long", "22", "x")]) == "a     1\nlong  22  x"


def test_money_that_is_missing_is_no_book_that_was_touched() -> None:
    lost = Broken(Invariant.COVER, "custody of BTC", "at least 5", "3")
    assert "When something was lost" in verdict_text(lost)
    touched = Broken(Invariant.ROWS, "row", "1", "2")
    assert "When something was lost" not in verdict_text(touched)
