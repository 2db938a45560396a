"""What payment-kit's client sent to payment-kit's server, sent to ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from farebox.clock import NS_PER_S, ManualClock
from farebox.testing.channels import RGAS
from farebox.wire.subrav.didauth import parse_did_auth
from farebox.wire.subrav.frames import FrameReader, payment_frame, stream_format
from farebox.wire.subrav.keys import KeyType, VerificationKey
from farebox.wire.subrav.payload import HEADER_NAME, parse_response_header
from tests.integration.channel_world import World, world

RECORDED = json.loads((Path(__file__).parents[1] / "vectors" / "subrav_http.json").read_text())
PAYER = RECORDED["identities"]["payer"]["verificationMethod"][0]
PAYER_KEY = VerificationKey.from_multibase(KeyType.ED25519, PAYER["publicKeyMultibase"])
#: What differs from one run to the next.
FLEETING = ("serviceTxRef", "timestamp", "lastUpdated")


async def test_every_recorded_exchange_goes_as_it_went(tmp_path: Path) -> None:
    first = next(each for each in RECORDED["transcripts"] if "authorization" in each["request"])
    signed_at = parse_did_auth(first["request"]["authorization"]).timestamp_s
    clock = ManualClock(signed_at * NS_PER_S)
    async with world(tmp_path, clock=clock) as town:
        await town.open(0, key=PAYER_KEY)
        for exchange in RECORDED["transcripts"]:
            if exchange["scene"].startswith("02"):  # its hub was filled after it had been empty
                await town.open(10**12, key=PAYER_KEY)
                clock.advance(6)
            await check(town, exchange)


async def check(town: World, exchange: dict[str, Any]) -> None:
    asked, told = exchange["request"], exchange["response"]
    names = {"paymentHeader": HEADER_NAME, "authorization": "Authorization"}
    headers = {header: asked[name] for name, header in names.items() if name in asked}
    # The authorization names the recorded server; its port is no part of what is compared.
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(town.app), base_url="http://127.0.0.1:40501"
    ) as client:
        answer = await client.request(
            asked["method"], asked["path"], headers=headers, content=asked.get("body")
        )
    scene = exchange["scene"]
    assert answer.status_code == told["status"], (scene, answer.text)
    assert answer.headers["content-type"] == told["contentType"], scene
    assert answer.headers.get("cache-control") == told.get("cacheControl"), scene
    if stream_format(told["contentType"]) is None and "exposeHeaders" in told:
        assert answer.headers["access-control-expose-headers"] == told["exposeHeaders"], scene
    header = answer.headers.get(HEADER_NAME)
    assert (header is None) == ("paymentHeader" not in told), (scene, header)
    if header is not None:
        assert steady(parse_response_header(header).document()) == steady(told["payment"]), scene
    form = stream_format(told["contentType"])
    if form is None:
        assert steady(answer.json()) == steady(json.loads(told["body"])), scene
        return
    ours, theirs = FrameReader(form), FrameReader(form)
    body, recorded = ours.feed(answer.content), theirs.feed(told["body"].encode())
    assert body + ours.end() == recorded + theirs.end(), scene
    assert ours.header is not None
    assert theirs.header is not None
    mine, other = (parse_response_header(each.header or "").document() for each in (ours, theirs))
    assert steady(mine) == steady(other), scene
    assert answer.content.endswith(payment_frame(form, ours.header))


def steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: steady(item) for name, item in value.items() if name not in FLEETING}
    return value


def test_the_world_sells_in_the_asset_of_the_recording() -> None:
    assert json.loads(RECORDED["transcripts"][0]["response"]["body"])["defaultAssetId"] == RGAS
