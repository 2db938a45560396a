"""The custom payment method of the documentation works as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from farebox.clock import ManualClock
from farebox.payments import PaymentMethods, get_payment_method, registry
from tests.integration.api_world import methods_of, problem_of, world_of

PAGE = Path(__file__).parents[2] / "docs/custom-method.md"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page's code defines, run from top to bottom."""
    monkeypatch.setattr(registry, "_plugins", PaymentMethods())
    names: dict[str, Any] = {"__name__": "custom_method"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


async def test_the_documented_method_pays_tops_up_and_refunds(
    page: dict[str, Any], tmp_path: Path
) -> None:
    office = page["office"]
    for code, worth_msat in (("a" * 16, 7_000), ("b" * 16, 3_000)):
        office.issue(code, worth_msat)
    method = get_payment_method("gift:" + "a" * 16)
    assert method is not None
    async with world_of(tmp_path / "book.db", methods_of(method), ManualClock()) as world:
        key = await world.created("gift:" + "a" * 16)
        topped = await world.post("/topup", {"cashu_token": "gift:" + "b" * 16}, bearer=key)
        assert topped.json() == {"msats": 3_000}
        assert await world.balance(key) == 10_000
        part = await world.post("/refund", {"amount_msat": 4_000}, bearer=key)
        card = part.json()["token"]
        assert office.worth_msat[card.removeprefix("gift:")] == 4_000
        assert await world.balance(key) == 6_000
        assert await world.balance(card) == 4_000, "the card is a key to its own account"
        assert await world.held_and_owed("custody:gift") == (10_000, 10_000)


async def test_the_documented_method_refuses_what_is_worth_nothing(
    page: dict[str, Any], tmp_path: Path
) -> None:
    method = get_payment_method("gift:x")
    assert method is not None
    async with world_of(tmp_path / "book.db", methods_of(method), ManualClock()) as world:
        unknown = await world.post("/create", {"initial_balance_token": "gift:" + "c" * 16})
        problem_of(unknown, 400, "gift_card_worthless")
        short = await world.post("/create", {"initial_balance_token": "gift:abc"})
        problem_of(short, 400, "credential_malformed")
