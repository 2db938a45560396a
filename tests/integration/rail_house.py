"""What the houses of all rails can do, wherever their money is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from farebox.books import open_audit
from farebox.bootstrap import Farebox
from farebox.ledger.invariants import verify
from farebox.ledger.replay import Broken
from tests.crash.victim import AheadClock
from tests.waiting import eventually


class RailHouse:
    """A running house behind its real door."""

    farebox: Farebox
    clock: AheadClock
    http: httpx.AsyncClient

    async def post(
        self, path: str, body: object, bearer: str = "", name: str = ""
    ) -> httpx.Response:
        """One call of the API."""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        if name:
            headers["Idempotency-Key"] = name
        return await self.http.post(path, json=body, headers=headers)

    async def get(self, path: str, bearer: str = "") -> Any:
        """What a call tells."""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        return (await self.http.get(path, headers=headers)).json()

    async def until_credited(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Wait for the house to hear of it by itself; nobody asks the rail here."""
        await eventually(
            lambda: self.farebox.deposits.by_id(asked["deposit"]),
            lambda request: request and request.credited_msat,
        )
        told: dict[str, Any] = await self.get(
            f"/v1/deposits/{asked['deposit']}", asked["claim_secret"]
        )
        return told

    async def balance_msat(self, bearer: str) -> int:
        """What an account can spend."""
        return int((await self.get("/info", bearer))["balance"])

    async def settled(self) -> None:
        """Recover until nothing is open, as time passes."""

        ahead = [400] * 30  # and no more: what has waited for half a day may be given up

        async def unfinished() -> list[tuple[str, str]]:
            if found := await self.farebox.operations.unfinished():
                self.clock.ahead_s += ahead.pop() if ahead else 0
                await self.farebox.recover()
            return [(one.id, one.error) for one in found]

        await eventually(unfinished, lambda found: not found)

    async def assert_whole(self) -> None:
        """The books verify: cover of each asset is among what that means."""
        with open_audit(self.farebox.settings) as reader:
            verified = verify(reader)
        assert not isinstance(verified, Broken), str(verified)
        assert verified[0].open_holds == 0
