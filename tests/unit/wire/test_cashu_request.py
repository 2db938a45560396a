"""Payment requests: both forms, the vectors, and noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidCredential
from farebox.wire import bech32
from farebox.wire.cashu.request import (
    LockOption,
    PaymentRequest,
    Transport,
    decode_request,
    encode_request,
    encode_request_bech32,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "cashu.json").read_text())


def expected(document: dict[str, Any]) -> PaymentRequest:
    lock = document.get("nut10")
    return PaymentRequest(
        document.get("a"),
        document.get("u"),
        tuple(document.get("m", ())),
        document.get("i"),
        document.get("s"),
        document.get("d"),
        tuple(Transport(t["t"], t["a"], tags(t.get("g"))) for t in document.get("t", ())),
        None if lock is None else LockOption(lock["k"], lock["d"], tags(lock.get("t"))),
    )


def tags(raw: list[list[str]] | None) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(tag) for tag in raw or ())


@pytest.mark.parametrize("vector", VECTORS["requests_a"], ids=lambda v: v["request"]["i"])
def test_the_nut18_vectors_decode_and_survive_a_round_trip(vector: dict[str, Any]) -> None:
    request = decode_request(vector["encoded"])
    assert decode_request(encode_request(request)) == request
    # The first published vector's text is of another request than the document beside it.
    if vector["request"]["i"] != "b7a90176":
        assert request == expected(vector["request"])


@pytest.mark.parametrize("vector", VECTORS["requests_b"], ids=lambda v: v["request"]["i"])
def test_the_nut26_vectors_decode_in_either_case_and_encode_to_the_same_text(
    vector: dict[str, Any],
) -> None:
    request = decode_request(vector["encoded"])
    assert request == decode_request(vector["encoded"].lower())
    assert encode_request_bech32(request) == vector["encoded"]
    wanted = expected(vector["request"])
    assert encode_request_bech32(wanted) == vector["encoded"]
    # A key alone is an npub when read, whatever the document called it.
    if not any(one.kind == "nostr" for one in wanted.transports):
        assert request == wanted


def test_the_example_in_nut26_encodes_to_its_text() -> None:
    request = PaymentRequest(
        1000, "sat", ("https://mint.example.com",), "demo123", True, "Coffee payment"
    )
    assert encode_request_bech32(request) == (
        "CREQB1QYQQWER9D4HNZV3NQGQQSQQQQQQQQQQRAQPSQQGQQSQQZQG9QQVXSAR5WPEN5TE0D45KUAPWV4UXZMTSD3J"
        "JUCM0D5RQQRJRDANXVET9YPCXZ7TDV4H8GXHR3TQ"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "creq",
        "creqA",
        "creqA!!!",
        "creqB1",
        "CREQB1QYQQ",
        "creqC" + "a" * 20,
        VECTORS["requests_b"][0]["encoded"][:-1] + "Q",
        VECTORS["requests_b"][0]["encoded"][:-1] + "q",
        b"creqA\xff",
        "creqA" + "A" * 70_000,
        encode_request(PaymentRequest(amount=1)),
        encode_request(PaymentRequest(amount=0, unit="sat")),
        encode_request(PaymentRequest(mints=("ftp://mint.example",))),
    ],
)
def test_malformed_requests_are_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidCredential):
        decode_request(text)


@pytest.mark.parametrize(
    "request_",
    [
        PaymentRequest(transports=(Transport("carrier-pigeon", "x"),)),
        PaymentRequest(transports=(Transport("nostr", "npub1x"),)),
        PaymentRequest(transports=(Transport("post", "x", (("a", "v" * 256),)),)),
        PaymentRequest(description="x" * 70_000),
    ],
)
def test_what_nut26_cannot_hold_is_refused(request_: PaymentRequest) -> None:
    with pytest.raises(InvalidCredential):
        encode_request_bech32(request_)


@given(st.binary(max_size=120))
def test_noise_behind_a_good_checksum_raises_nothing_but_invalid_credential(raw: bytes) -> None:
    try:
        decode_request(bech32.encode("creqb", raw, bech32.Checksum.BECH32M))
    except InvalidCredential:
        return


@given(st.text(max_size=80))
def test_noise_raises_nothing_but_invalid_credential(noise: str) -> None:
    for text in (noise, "creqA" + noise, "creqb1" + noise):
        try:
            decode_request(text)
        except InvalidCredential:
            continue


field = st.text(max_size=20)
requests = st.builds(
    PaymentRequest,
    st.integers(min_value=1, max_value=2**63 - 1),
    st.sampled_from(["sat", "msat", "usd"]),
    st.lists(st.sampled_from(["https://a.example", "http://b.example:1"]), max_size=2).map(tuple),
    st.none() | field,
    st.none() | st.booleans(),
    st.none() | field,
    st.lists(
        st.builds(Transport, st.just("post"), field, st.sampled_from([(), (("k", "v"),)])),
        max_size=2,
    ).map(tuple),
    st.none() | st.builds(LockOption, st.sampled_from(["P2PK", "HTLC"]), field),
)


@given(requests)
def test_any_request_survives_both_forms(request_: PaymentRequest) -> None:
    assert decode_request(encode_request(request_)) == request_
    assert decode_request(encode_request_bech32(request_)) == request_
