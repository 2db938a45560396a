"""The assembled house: settings in, paid requests out, on a mint of play money."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec

from farebox.bootstrap import Farebox
from farebox.paywall.model import (
    Admission,
    Answer,
    BearerMoney,
    EmbeddedMoney,
    Ended,
    NothingPresented,
)
from farebox.pricing.request import read_request
from farebox.pricing.usage import Usage
from farebox.rails.cashu.records import PROOF
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint, Refuse
from farebox.wire.cashu.token import decode_token, encode_token
from farebox.wire.receipt import check

ROOT_KEY = b"k" * 32
FACTS = read_request("POST", "/v1/echo", None)
CHAT = read_request("POST", "/v1/chat/completions", b'{"model":"m","max_tokens":100,"messages":[]}')


def house(data_dir: Path, mint_url: str, price: dict[str, object]) -> Farebox:
    overrides: dict[str, Any] = {
        "data_dir": str(data_dir),
        "mint": [{"url": mint_url}],
        "upstream": [{"urls": ["http://127.0.0.1:9"]}],
        "price": [price],
    }
    return Farebox(load_settings(None, {}, overrides), ROOT_KEY)


async def test_an_embedded_payment_costs_one_mint_call_and_its_change_none(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    async with serving(mint) as url, house(tmp_path, url, {"per_request": "10 sat"}) as farebox:
        mint.url = url
        await farebox.worker.stop()  # it asks by itself
        for face in (64, 100):
            token = encode_token(mint.issue(face))
            mint.calls.clear()
            admitted = await farebox.paywall.authorise(EmbeddedMoney(token), FACTS)
            assert isinstance(admitted, Admission), admitted
            settled = await farebox.paywall.settle(admitted, Usage(), Ended.COMPLETE)
            assert settled.charged_msat == 10_000
            assert settled.returned_msat == (face - 10) * 1_000
        assert dict(mint.calls) == {"swap": 1}
        change = dict(settled.headers)[b"x-cashu"].decode()
        assert decode_token(change).amount == 90


async def test_a_metered_charge_to_the_millisatoshi_leaves_its_rest_as_credit(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    price: dict[str, object] = {"per_output_token": "0.3 sat"}
    async with serving(mint) as url, house(tmp_path, url, price) as farebox:
        mint.url = url
        token = encode_token(mint.issue(64))
        admitted = await farebox.paywall.authorise(EmbeddedMoney(token), CHAT)
        assert isinstance(admitted, Admission), admitted
        settled = await farebox.paywall.settle(admitted, Usage(output_tokens=7), Ended.COMPLETE)
        assert settled.charged_msat == 2_100
        assert settled.returned_msat == 61_000
        told = await farebox.paywall.change(admitted.request_id, BearerMoney(token))
        assert decode_token(msgspec.json.decode(told.body)["token"]).amount == 61
        account = await farebox.store.account(admitted.account)
        assert account is not None
        assert account.available == 900


async def test_the_challenge_asks_for_enough_after_mint_fees(tmp_path: Path) -> None:
    mint = PlayMint(fee_ppk=400)
    async with serving(mint) as url, house(tmp_path, url, {"per_request": "10 sat"}) as farebox:
        mint.url = url
        answer = await farebox.paywall.authorise(NothingPresented(), FACTS)
        assert isinstance(answer, Answer)
        asked = msgspec.json.decode(answer.body)["amount"]
        token = encode_token(mint.issue(asked))
        admitted = await farebox.paywall.authorise(EmbeddedMoney(token), FACTS)
        assert isinstance(admitted, Admission), admitted
        await farebox.paywall.settle(admitted, Usage(), Ended.COMPLETE)


async def test_a_token_refused_for_a_passing_reason_pays_when_that_has_passed(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    async with serving(mint) as url, house(tmp_path, url, {"per_request": "10 sat"}) as farebox:
        mint.url = url
        token = encode_token(mint.issue(64))
        mint.faults.next("swap", Refuse(11005))
        refused = await farebox.paywall.authorise(EmbeddedMoney(token), FACTS)
        assert isinstance(refused, Answer)
        assert msgspec.json.decode(refused.body)["code"] == "token_rejected"
        admitted = await farebox.paywall.authorise(EmbeddedMoney(token), FACTS)
        assert isinstance(admitted, Admission), admitted
        settled = await farebox.paywall.settle(admitted, Usage(), Ended.COMPLETE)
        assert (settled.charged_msat, settled.returned_msat) == (10_000, 54_000)
        again = await farebox.paywall.authorise(EmbeddedMoney(token), FACTS)
        assert isinstance(again, Answer)
        assert msgspec.json.decode(again.body)["code"] == "payment_used"


async def test_a_receipt_can_be_checked_with_the_key_that_is_told(tmp_path: Path) -> None:
    mint = PlayMint()
    async with serving(mint) as url, house(tmp_path, url, {"per_request": "10 sat"}) as farebox:
        mint.url = url
        token = encode_token(mint.issue(64))
        admitted = await farebox.paywall.authorise(EmbeddedMoney(token), FACTS)
        assert isinstance(admitted, Admission)
        settled = await farebox.paywall.settle(admitted, Usage(), Ended.COMPLETE)
        async with serving(farebox.app) as door, httpx.AsyncClient(timeout=60) as client:
            told = (await client.get(f"{door}/healthz")).json()["receipt_key"]
    receipt = dict(settled.headers)[b"x-farebox-receipt"].decode()
    facts = msgspec.json.decode(check(receipt, bytes.fromhex(told)))
    assert facts["request_id"] == admitted.request_id
    assert (facts["quoted_msat"], facts["charged_msat"]) == (10_000, 10_000)
    assert facts["returned_msat"] == 54_000


async def test_a_fixed_price_is_cut_out_in_as_few_proofs_as_can_be(tmp_path: Path) -> None:
    mint = PlayMint()
    async with serving(mint) as url, house(tmp_path, url, {"per_request": "10 sat"}) as farebox:
        mint.url = url
        token = encode_token(mint.issue(64))
        admitted = await farebox.paywall.authorise(EmbeddedMoney(token), FACTS)
        assert isinstance(admitted, Admission)
        rows = await farebox.store.find(PROOF, {"owner": admitted.request_id})
        assert sorted(row.value.amount for _, row in rows) == [2, 2, 4, 8, 16, 32]
        settled = await farebox.paywall.settle(admitted, Usage(), Ended.REFUSED)
        assert (settled.charged_msat, settled.returned_msat) == (0, 64_000)
