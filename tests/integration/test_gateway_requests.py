"""Requests through the gateway, on a real book."""

from __future__ import annotations

from pathlib import Path

from tests.integration.gateway_house import open_door


async def test_a_key_pays_for_a_forwarded_request(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        async with caller.get(f"{door.url}/v1/hello?a=1", headers=door.auth) as answer:
            assert answer.status == 200
            assert await answer.json() == {"hello": "world"}
            assert "x-farebox-receipt" in answer.headers
        assert await door.left() == 990_000
