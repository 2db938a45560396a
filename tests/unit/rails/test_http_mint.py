"""Answers that no honest mint gives."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from farebox.clock import ManualClock
from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.cashu import HttpMint, MintLimits, open_session
from farebox.testing.asgi import Receive, Scope, Send, length_header, serving, start
from farebox.testing.mint import PlayMint
from farebox.wire.cashu import crypto
from farebox.wire.cashu.keysets import keyset_id_v1
from farebox.wire.cashu.model import BlindedMessage, Proof

KEY = os.urandom(32)
POINT = crypto.public_key(KEY).hex()
PROOF = Proof(1, "00ffffffffffffff", os.urandom(32).hex(), bytes.fromhex(POINT))
OUTPUT = BlindedMessage(1, "00ffffffffffffff", crypto.blind("a", os.urandom(32)))
SIGNATURE = {"amount": 1, "id": "00ffffffffffffff", "C_": POINT}
ANSWER_MAX = 10_000


@dataclass
class LiarMint:
    """Answers each path with what it is told to."""

    answers: dict[str, object] = field(default_factory=dict)
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    asked: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        path = str(scope["path"])
        self.asked.append(path)
        answer = self.answers.get(path, b"")
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        await start(send, self.status, "application/json", (*self.headers, length_header(body)))
        await send({"type": "http.response.body", "body": body})


async def ask(
    liar: Callable[[Scope, Receive, Send], Awaitable[None]],
    call: Callable[[HttpMint], Awaitable[object]],
) -> object:
    async with serving(liar) as url, open_session() as session:
        limits = MintLimits(call_s=60, answer_bytes_max=ANSWER_MAX)
        return await call(HttpMint(url, session, ManualClock(), limits=limits))


def swap(mint: HttpMint) -> Awaitable[object]:
    return mint.swap([PROOF], [OUTPUT])


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xfe",
        b"[" * 5_000,
        b"null",
        {"signatures": "none"},
        {"signatures": [SIGNATURE, SIGNATURE]},
        {"signatures": [{**SIGNATURE, "C_": "02" + "ff" * 32}]},
        {"signatures": [{**SIGNATURE, "C_": POINT[2:]}]},
        {"signatures": [{**SIGNATURE, "amount": -1}]},
        {"signatures": [{**SIGNATURE, "amount": 1.0}]},
        {"signatures": [{**SIGNATURE, "amount": 2**64}]},
        {"signatures": [{**SIGNATURE, "id": "../../"}]},
    ],
)
async def test_a_swap_is_answered_as_it_must_be_or_not_at_all(answer: object) -> None:
    with pytest.raises(RailUnavailable):
        await ask(LiarMint({"/v1/swap": answer}), swap)


async def test_an_endless_answer_is_cut_off() -> None:
    long = b'{"signatures": [' + b" " * ANSWER_MAX
    with pytest.raises(RailUnavailable, match="too long"):
        await ask(LiarMint({"/v1/swap": long}), swap)


async def test_a_packed_answer_is_not_unpacked() -> None:
    packed = gzip.compress(json.dumps({"signatures": [SIGNATURE]}).encode())
    liar = LiarMint({"/v1/swap": packed}, headers=((b"content-encoding", b"gzip"),))
    with pytest.raises(RailUnavailable, match="unasked"):
        await ask(liar, swap)


async def test_money_is_not_sent_where_a_redirect_points() -> None:
    liar = LiarMint({"/v1/swap": {}}, status=307, headers=((b"location", b"/elsewhere"),))
    with pytest.raises(RailUnavailable, match="307"):
        await ask(liar, swap)
    assert liar.asked == ["/v1/swap"]


async def test_a_refusal_without_code_is_a_refusal() -> None:
    liar = LiarMint({"/v1/swap": {"detail": [{"input": PROOF.secret}]}}, status=422)
    with pytest.raises(RailRejected) as refused:
        await ask(liar, swap)
    assert refused.value.code is None


@pytest.mark.parametrize("status", [400, 422])
async def test_no_error_repeats_a_secret(status: int) -> None:
    document = {"detail": f"cannot read {PROOF.secret} of {PROOF.C.hex()}", "code": 10001}
    liar = LiarMint({"/v1/swap": document}, status=status)
    with pytest.raises(RailRejected) as refused:
        await ask(liar, swap)
    assert PROOF.secret not in str(refused.value)
    assert PROOF.C.hex() not in str(refused.value)
    assert "cannot read" in str(refused.value)


async def test_states_of_other_proofs_are_no_answer() -> None:
    answer = {"states": [{"Y": POINT, "state": "UNSPENT"}]}
    with pytest.raises(RailUnavailable):
        await ask(
            LiarMint({"/v1/checkstate": answer}),
            lambda mint: mint.check_state([crypto.hash_to_curve("another")]),
        )


async def test_an_output_nobody_asked_for_is_not_restored() -> None:
    other = {"amount": 1, "id": "00ffffffffffffff", "B_": POINT}
    answer = {"outputs": [other], "signatures": [SIGNATURE]}
    with pytest.raises(RailUnavailable):
        await ask(LiarMint({"/v1/restore": answer}), lambda mint: mint.restore([OUTPUT]))


async def test_keys_that_do_not_make_up_their_id_are_refused() -> None:
    listed = {"id": "00ffffffffffffff", "unit": "sat", "active": True}
    liar = LiarMint(
        {
            "/v1/keysets": {"keysets": [listed]},
            "/v1/keys/00ffffffffffffff": {"keysets": [{**listed, "keys": {"1": POINT}}]},
        }
    )
    with pytest.raises(RailUnavailable, match="do not make up"):
        await ask(liar, lambda mint: mint.keys("00ffffffffffffff"))


async def test_old_keyset_ids_that_nobody_can_use_are_passed_over() -> None:
    honest = keyset_id_v1({1: bytes.fromhex(POINT)})
    listed = {"id": honest, "unit": "sat", "active": True, "input_fee_ppk": None}
    old = {"id": "I2yN+iRYfkzT", "unit": "sat", "active": False}
    keys = {"id": honest, "unit": "sat", "keys": {"1": POINT}}
    liar = LiarMint(
        {
            "/v1/keysets": {"keysets": [old, listed]},
            f"/v1/keys/{honest}": {"keysets": [keys]},
        }
    )
    keysets = await ask(liar, lambda mint: mint.keysets())
    assert [keyset.id for keyset in keysets] == [honest]  # type: ignore[attr-defined]
    assert await ask(liar, lambda mint: mint.keys(honest))


async def test_two_keysets_with_one_id_are_refused() -> None:
    listed = {"id": "00ffffffffffffff", "unit": "sat", "active": True}
    liar = LiarMint({"/v1/keysets": {"keysets": [listed, listed]}})
    with pytest.raises(RailUnavailable, match="one id"):
        await ask(liar, lambda mint: mint.keysets())


async def test_a_quote_id_cannot_lead_to_another_path() -> None:
    liar = LiarMint(status=404)
    with pytest.raises(RailUnavailable):
        await ask(liar, lambda mint: mint.mint_quote_state("../../v1/info?x#y"))
    assert liar.asked == ["/v1/mint/quote/bolt11/../../v1/info?x#y"]  # as one segment


async def test_a_mint_that_is_not_there_is_unavailable() -> None:
    async with open_session() as session:
        mint = HttpMint("http://127.0.0.1:1", session, ManualClock())
        with pytest.raises(RailUnavailable):
            await mint.info()


async def test_nuts_that_are_switched_off_do_not_count() -> None:
    nuts = {
        "4": {"methods": [], "disabled": True},
        "5": {"methods": [], "disabled": False},
        "7": {"supported": True},
        "9": {"supported": False},
        "17": {"supported": [{"method": "bolt11"}]},
        "x": {"supported": True},
    }
    liar = LiarMint({"/v1/info": {"name": None, "nuts": nuts}})
    info = await ask(liar, lambda mint: mint.info())
    assert info.nuts == {5, 7, 17}  # type: ignore[attr-defined]


async def test_keys_are_fetched_once() -> None:
    play = PlayMint()
    async with serving(play) as url, open_session() as session:
        mint = HttpMint(url, session, ManualClock())
        (keyset,) = await mint.keysets()
        for _ in range(3):
            await mint.keys(keyset.id)
    assert (play.calls["keysets"], play.calls["keys"]) == (1, 1)
