"""A whole house with a wallet on a real regtest chain, behind its real door.

Leaving it proves that the book verifies, nothing is open, custody is what the wallet holds on the
node's chain, and no key stands in any log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from farebox.bootstrap import Farebox
from farebox.rails.bitcoin.method import BitcoinMethod
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.testing.upstream import PlayUpstream
from tests.crash.victim import AheadClock
from tests.integration.lightning_house import PRICE_MSAT, ROOT_KEY, LightningHouse
from tests.integration.whole_house import listening
from tests.peers.bitcoin import PASSWORD, USER, BitcoinChain
from tests.waiting import eventually

WORDS = "letter advice cage absurd amount doctor acoustic avoid letter advice cage above"
CUSTODY = "custody:bitcoin:main"
#: What others paid in is spent once it is as deep.
PAYOUT_CONFIRMATIONS = 2


@dataclass
class BitcoinHouse(LightningHouse):
    """A running house whose money is on a chain."""

    @property
    def method(self) -> BitcoinMethod:
        """The rail."""
        found = self.farebox.payments.methods["bitcoin"]
        assert isinstance(found, BitcoinMethod)
        return found

    async def asked(self, amount_msat: int | None, bearer: str = "") -> dict[str, Any]:
        """A deposit that was asked for."""
        body = {"method": "bitcoin", "asset": "BTC", "amount": amount_msat}
        answer = await self.post("/v1/deposits", body, bearer)
        assert answer.status_code == 201, answer.text
        asked: dict[str, Any] = answer.json()
        return asked

    async def told(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """How a deposit stands."""
        found: dict[str, Any] = await self.get(
            f"/v1/deposits/{asked['deposit']}", asked["claim_secret"]
        )
        return found

    async def until(self, asked: Mapping[str, Any], state: str) -> dict[str, Any]:
        """Wait until a deposit stands so, by what the house sees by itself."""

        def holds(told: Mapping[str, Any]) -> bool:
            # Its request may have been read a moment before its deposits.
            is_credited = bool(told["credited_msat"])
            return bool(told["state"] == state and is_credited == (state == "credited"))

        return await eventually(lambda: self.told(asked), holds)

    async def credited(
        self, chain: BitcoinChain, amount_sat: int, blocks: int = PAYOUT_CONFIRMATIONS
    ) -> tuple[str, dict[str, Any]]:
        """The key of a new account with so much on it, and its deposit."""
        asked = await self.asked(amount_sat * 1_000)
        await asyncio.to_thread(chain.payer.pay, asked["pay"], amount_sat)
        await asyncio.to_thread(chain.node.mine, blocks)
        await self.until(asked, "credited")
        return await self.key_of(asked), asked

    async def key_of(self, asked: Mapping[str, Any]) -> str:
        """The key of the account that a deposit has opened."""
        claim = {"initial_balance_token": asked["uri"], "claim_secret": asked["claim_secret"]}
        made = await self.post("/create", claim)
        assert made.status_code == 200, made.text
        return str(made.json()["api_key"])

    async def paid_out(self, key: str, to: str, amount_sat: int, name: str) -> str:
        """A payout that was asked for; its operation."""
        body = {"destination": to, "amount_msat": amount_sat * 1_000}
        asked = await self.post("/v1/payouts", body, key, name)
        assert asked.status_code == 202, asked.text
        return str(asked.json()["operation"])

    async def told_of(self, key: str, to: str, amount_sat: int, name: str) -> dict[str, Any]:
        """What the same asking tells at the end."""
        body = {"destination": to, "amount_msat": amount_sat * 1_000}
        asked = await self.post("/v1/payouts", body, key, name)
        assert asked.status_code == 200, asked.text
        found: dict[str, Any] = asked.json()
        return found

    async def passed(self, blocks: int) -> None:
        """Wait until the house has looked at the chain at this height."""

        async def height() -> int:
            view = self.method.wallet.view
            return view.tip.height if view else 0

        await eventually(height, lambda found: found == blocks)

    async def wallet_sat(self) -> int:
        """What the wallet holds in blocks, by the node."""
        view = await self.method._addresses.look()
        return sum(one.amount_sat for one in view.coins if one.block and not one.is_spent)

    async def held_msat(self) -> int:
        """What the books say is in the wallet."""
        account = await self.farebox.store.account(CUSTODY)
        return account.held if account else 0


def bitcoin_settings(chain: BitcoinChain, **terms: object) -> dict[str, object]:
    """How a house is told of its wallet and its node."""
    wallet = {} if "watch" in terms else {"key": WORDS}
    return {
        "url": chain.node.url,
        "login": f"{USER}:{PASSWORD}",
        **wallet,
        "network": "regtest",
        "start_height": 1,
        "round_s": 0.1,
        "batch_window_s": 0,
        "payout_confirmations": PAYOUT_CONFIRMATIONS,
        "fee_rate": 5,
        **terms,
    }


@asynccontextmanager
async def bitcoin_house(
    data_dir: Path, bitcoin: Mapping[str, object]
) -> AsyncIterator[BitcoinHouse]:
    """A house by its settings; what was done is audited when its doors close."""
    async with AsyncExitStack() as open_things:
        heard = open_things.enter_context(listening())
        upstream_url = await open_things.enter_async_context(serving(PlayUpstream()))
        settings = {
            "data_dir": str(data_dir),
            "upstream": [{"urls": [upstream_url]}],
            "price": [{"path": "/*", "per_request": f"{PRICE_MSAT} msat"}],
            "bitcoin": bitcoin,
        }
        clock = AheadClock()
        farebox = await open_things.enter_async_context(
            Farebox(load_settings(None, {}, settings), ROOT_KEY, clock=clock)
        )
        url = await open_things.enter_async_context(serving(farebox.app))
        http = await open_things.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60))
        words = str(bitcoin.get("key", WORDS))
        house = BitcoinHouse(farebox, clock, http, heard, (words, PASSWORD, "prv"))
        yield house
        await house.assert_whole()
        for secret in house.secrets:
            assert secret not in heard.getvalue()
