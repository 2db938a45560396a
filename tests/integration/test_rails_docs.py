"""What docs/rails.md shows is what the house says."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from farebox.settings import load_settings
from farebox.testing.asgi import serving
from tests.integration.lightning_house import Payee, lightning_house
from tests.peers.lnd import LightningNetwork

PAGE = (Path(__file__).parents[2] / "docs/rails.md").read_text()


def shown(name: str) -> dict[str, Any]:
    block = re.search(rf"```json {name}\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None, name
    return dict(json.loads(block[1]))


def test_the_settings_can_be_read(tmp_path: Path) -> None:
    told = "".join(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
    for name in re.findall(r'\{ file = "(.*?)" \}', told):
        (tmp_path / name).write_text("00ff\n")
        (tmp_path / name).chmod(0o600)
    environ = dict.fromkeys(re.findall(r'\{ env = "(.*?)" \}', told), "https://node.example")
    (tmp_path / "farebox.toml").write_text(told)
    settings = load_settings(tmp_path / "farebox.toml", environ, {})
    assert settings.rates.held == ("DAI",)
    assert [one.asset for one in settings.asset_rates] == ["ETH"]
    found = settings.lightning
    assert found.url == tomllib.loads(told)["lightning"]["url"]
    assert found.key is not None
    assert found.key.reveal() == "00ff"


@pytest.mark.peer
async def test_the_answers_of_the_lightning_rail_have_the_members_that_are_shown(
    tmp_path: Path, lightning: LightningNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lightning_house(tmp_path, lightning, monkeypatch) as house:
        asked = await house.post("/v1/deposits", shown("ask"))
        assert asked.status_code == 201
        assert list(asked.json()) == list(shown("deposit"))
        told = await house.get(
            f"/v1/deposits/{asked.json()['deposit']}", asked.json()["claim_secret"]
        )
        assert list(told) == [name for name in shown("deposit") if name != "claim_secret"]
        key = await house.funded(lightning, 50_000)
        payee = Payee(lightning)
        async with serving(payee) as payee.url:
            body = shown("payout") | {"destination": payee.address}
            quote = (await house.post("/v1/payouts", body, key)).json()
        wanted = shown("quote")
        assert list(quote) == list(wanted)
        unlike = {"destination", "fee_estimate"}  # an address's invoice is not asked for yet
        assert all(quote[name] == wanted[name] for name in wanted.keys() - unlike), quote
