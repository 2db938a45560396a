"""Headers, frames, authorizations, arguments and documents, as payment-kit 0.7.0 wrote them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidCredential
from farebox.wire.subrav import documents, mcp, multibase
from farebox.wire.subrav.didauth import parse_did_auth, sign_did_auth, signed_text
from farebox.wire.subrav.frames import FrameReader, StreamFormat, payment_frame, stream_format
from farebox.wire.subrav.keys import KeyType, VerificationKey, verify_sub_rav
from farebox.wire.subrav.model import SignedSubRAV
from farebox.wire.subrav.payload import (
    PaymentError,
    RequestPayload,
    ResponsePayload,
    parse_request_header,
    parse_response_header,
    request_from,
    response_from,
)
from tests.unit.wire.test_subrav import VECTORS, signing_key, sub_ravs

RECORDED = json.loads((Path(__file__).parents[2] / "vectors" / "subrav_http.json").read_text())
EXCHANGES = [
    pytest.param(exchange, id=f"{number}: {exchange['scene']}")
    for number, exchange in enumerate(RECORDED["transcripts"])
]
PAYER_KEY = VerificationKey.from_multibase(
    KeyType.ED25519,
    RECORDED["identities"]["payer"]["verificationMethod"][0]["publicKeyMultibase"],
)
HEADERS = VECTORS["header"]

references = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
amounts = st.integers(0, 2**128)
signed_sub_ravs = st.builds(SignedSubRAV, sub_ravs, st.binary(min_size=64, max_size=64))
requests = st.builds(
    RequestPayload,
    client_tx_ref=references,
    max_amount=st.none() | amounts,
    signed_sub_rav=st.none() | signed_sub_ravs,
)
errors = st.builds(PaymentError, code=references, message=st.text(max_size=40))
responses = st.builds(
    ResponsePayload,
    client_tx_ref=references,
    service_tx_ref=st.none() | references,
    sub_rav=st.none() | sub_ravs,
    cost=st.none() | amounts,
    cost_usd=st.none() | amounts,
    error=st.none() | errors,
)


@pytest.mark.parametrize("vector", HEADERS["requestHeaders"], ids=lambda v: v["name"])
def test_a_request_header_is_read_and_written_byte_for_byte(vector: dict[str, Any]) -> None:
    payload = parse_request_header(vector["header"])
    assert payload.header() == vector["header"]
    assert payload.document() == vector["json"]


@pytest.mark.parametrize("vector", HEADERS["responseHeaders"], ids=lambda v: v["name"])
def test_a_response_is_read_and_written_byte_for_byte(vector: dict[str, Any]) -> None:
    payload = parse_response_header(vector["header"])
    assert payload.header() == vector["header"]
    assert msgspec.json.encode(payload.document()).decode() == vector["jsonText"]
    assert mcp.payment_item(payload) == vector["mcpContentItem"]
    assert mcp.find_payment_item([{"type": "text"}, vector["mcpContentItem"]]) == payload


@pytest.mark.parametrize("vector", HEADERS["requestParse"], ids=lambda v: v["name"])
def test_a_request_header_is_taken_where_payment_kit_takes_it(vector: dict[str, Any]) -> None:
    if not vector["accepted"]:
        with pytest.raises(InvalidCredential):
            parse_request_header(vector["header"])
        return
    told = vector["parsed"]
    payload = parse_request_header(header_of_numbers(vector))
    assert payload.client_tx_ref == told["clientTxRef"]
    assert f"{payload.max_amount or 0}n" == told["maxAmount"]
    assert ("signedSubRav" in told) == (payload.signed_sub_rav is not None)
    if payload.signed_sub_rav is not None:
        strings = {
            name: str(value).removesuffix("n")
            for name, value in told["signedSubRav"]["subRav"].items()
        }
        assert documents.sub_rav_document(payload.signed_sub_rav.sub_rav) == strings
        assert payload.signed_sub_rav.signature.hex() == told["signedSubRav"]["signature"]


def header_of_numbers(vector: dict[str, Any]) -> str:
    """The vector's header; the long one is cut in the file and is made again from its start."""
    header: str = vector["header"]
    if vector["name"] != "subrav_numbers_not_strings":
        return header
    signed = vector["parsed"]["signedSubRav"]
    numbers = {
        name: int(value[:-1]) if re.fullmatch("[0-9]+n", str(value)) else value
        for name, value in signed["subRav"].items()
    }
    whole = multibase.encode_json(
        {
            "version": 1,
            "clientTxRef": vector["parsed"]["clientTxRef"],
            "signedSubRav": {
                "subRav": numbers,
                "signature": multibase.encode(bytes.fromhex(signed["signature"])),
            },
        }
    )
    assert whole.startswith(header)
    return whole


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"version": 1},
        {"version": 2, "clientTxRef": "a"},
        {"version": "1", "clientTxRef": "a"},
        {"version": 1, "clientTxRef": ""},
        {"version": 1, "clientTxRef": "a b"},
        {"version": 1, "clientTxRef": "a" * 129},
        {"version": 1, "clientTxRef": "a", "maxAmount": "-1"},
        {"version": 1, "clientTxRef": "a", "maxAmount": 1.5},
        {"version": 1, "clientTxRef": "a", "signedSubRav": {}},
        {"version": 1, "clientTxRef": "a", "signedSubRav": {"subRav": {}, "signature": "u"}},
    ],
    ids=str,
)
def test_a_request_with_a_wrong_field_is_refused(document: object) -> None:
    with pytest.raises(InvalidCredential):
        request_from(document)


def test_a_header_has_a_length_and_an_error_shows_nothing_of_it() -> None:
    for text in ("u" + "QQ" * 8_192, multibase.encode(b"{"), multibase.encode(b"[" * 9_000)):
        with pytest.raises(InvalidCredential) as refused:
            parse_request_header(text)
        assert text[1:20] not in str(refused.value)


@given(requests)
def test_requests_come_back_as_they_were_sent(payload: RequestPayload) -> None:
    assert parse_request_header(payload.header()) == payload
    assert request_from(json.loads(json.dumps(payload.document()))) == payload


@given(responses)
def test_responses_come_back_as_they_were_sent(payload: ResponsePayload) -> None:
    assert parse_response_header(payload.header()) == payload
    assert mcp.find_payment_item([mcp.payment_item(payload)]) == payload


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_other_json_is_refused_and_nothing_else_happens(document: object) -> None:
    for read in (request_from, response_from):
        with pytest.raises(InvalidCredential):
            read(document)


# ── frames ───────────────────────────────────────────────────────────────────────────────────────


def test_frames_are_written_as_payment_kit_writes_them() -> None:
    header = HEADERS["responseHeaders"][0]["header"]
    told = VECTORS["streaming"]
    assert payment_frame(StreamFormat.SSE, header).decode() == told["sseFrame"]
    assert payment_frame(StreamFormat.NDJSON, header).decode() == told["ndjsonFrame"]


def test_a_stream_is_told_by_its_content_type() -> None:
    assert stream_format("text/event-stream; charset=utf-8") is StreamFormat.SSE
    assert stream_format("Application/X-NDJSON") is StreamFormat.NDJSON
    assert stream_format("application/json") is None


@pytest.mark.parametrize("form", StreamFormat)
@given(
    header=responses.map(ResponsePayload.header),
    cuts=st.lists(st.integers(0, 4_000), max_size=12),
    crlf=st.booleans(),
)
def test_a_frame_is_found_however_the_stream_is_cut(
    form: StreamFormat, header: str, cuts: list[int], crlf: bool
) -> None:
    body = b'data: {"t":0}\n\ndata: [DONE]\n\n' if form is StreamFormat.SSE else b'{"t":0}\n{}\n'
    stream = body + payment_frame(form, header)
    if crlf:
        body, stream = body.replace(b"\n", b"\r\n"), stream.replace(b"\n", b"\r\n")
    reader, passed, at = FrameReader(form), b"", 0
    for cut in (*sorted(cuts), len(stream)):
        passed += reader.feed(stream[at:cut])
        at = max(at, cut)
    passed += reader.end()
    assert reader.header == header
    assert passed.rstrip() == body.rstrip()


def test_a_stream_without_a_frame_passes_untouched_and_a_second_frame_is_refused() -> None:
    reader = FrameReader(StreamFormat.SSE)
    body = b"event: x\ndata: nuwa_payment_header\n\n" + b"data: " + b"y" * (1 << 21) + b"\n\ncut"
    assert reader.feed(body) + reader.end() == body
    assert reader.header is None
    frame = payment_frame(StreamFormat.SSE, "uQQ")
    with pytest.raises(InvalidCredential):
        reader.feed(frame + frame)


# ── who asks ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("vector", VECTORS["didAuth"], ids=lambda v: v["name"])
def test_an_authorization_is_read_signed_and_written_byte_for_byte(vector: dict[str, Any]) -> None:
    auth, key = parse_did_auth(vector["authorizationHeader"]), signing_key("ed25519")
    assert signed_text(auth.signed_data) == vector["signedText"]
    assert auth.verifies(key.public) is vector["signedTextVerifies"] is True
    assert auth.header() == vector["authorizationHeader"]
    data = vector["signedObject"]["signed_data"]
    ours = sign_did_auth(
        auth.signer_did,
        auth.fragment,
        key,
        operation=data["operation"],
        params=data["params"],
        nonce=data["nonce"],
        timestamp_s=data["timestamp"],
    )
    assert ours.header() == vector["authorizationHeader"]


def test_uri_and_method_are_not_under_the_signature() -> None:
    """Not a wish but the wire: whoever relies on them must know it."""
    auth = parse_did_auth(VECTORS["didAuth"][0]["authorizationHeader"])
    moved = {**auth.signed_data, "params": {"uri": "http://elsewhere/", "method": "DELETE"}}
    assert signed_text(moved) == signed_text(auth.signed_data)
    later = {**auth.signed_data, "timestamp": auth.timestamp_s + 1}
    assert signed_text(later) != signed_text(auth.signed_data)


def altered(**changes: Any) -> str:
    document = json.loads(json.dumps(VECTORS["didAuth"][0]["signedObject"]))
    for path, value in changes.items():
        part, _, name = path.partition("__")
        document[part][name] = value
    return "DIDAuthV1 " + multibase.encode_json(document)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer sk-1",
        "DIDAuthV1",
        "DIDAuthV1 uQQ",
        "DIDAuthV2" + altered()[9:],
        altered(signature__signer_did="did:rooch:other"),
        altered(signature__key_id="did:rooch:other#account-key"),
        altered(signature__key_id="account-key"),
        altered(signature__value="uQQ", signed_data__nonce=""),
        altered(signed_data__nonce="n" * 257),
        altered(signed_data__timestamp="1700000000"),
        altered(signed_data__timestamp=1.5),
        altered(signed_data__params=[]),
    ],
)
def test_an_authorization_with_a_wrong_field_is_refused(header: str) -> None:
    with pytest.raises(InvalidCredential):
        parse_did_auth(header)


@pytest.mark.parametrize("number", [1.5, 2**53])
def test_numbers_that_javascript_would_round_are_refused(number: float) -> None:
    with pytest.raises(InvalidCredential):
        parse_did_auth(altered(signed_data__params={"nonce": number}))


# ── tool calls ───────────────────────────────────────────────────────────────────────────────────


def test_a_tool_never_sees_the_reserved_arguments() -> None:
    auth = parse_did_auth(VECTORS["didAuth"][0]["authorizationHeader"])
    payment = parse_request_header(HEADERS["requestHeaders"][1]["header"])
    given_arguments = mcp.give_arguments({"text": "hi"}, auth, payment)
    assert given_arguments["__nuwa_payment"] == HEADERS["requestHeaders"][1]["json"]
    assert given_arguments["__nuwa_auth"] == VECTORS["didAuth"][0]["authorizationHeader"]
    call = mcp.take_arguments(given_arguments)
    assert call == mcp.ToolCall({"text": "hi"}, auth, payment)
    assert mcp.take_arguments({"text": "hi"}) == mcp.ToolCall({"text": "hi"}, None, None)
    assert set(mcp.argument_schemas()) == set(given_arguments) - {"text"}


@pytest.mark.parametrize("arguments", [{"__nuwa_auth": 1}, {"__nuwa_payment": "u"}])
def test_reserved_arguments_of_another_shape_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidCredential):
        mcp.take_arguments(arguments)


def test_a_result_without_payment_is_told_from_one_with_a_broken_one() -> None:
    assert mcp.find_payment_item([1, {"type": "resource", "resource": {"uri": "x"}}]) is None
    with pytest.raises(InvalidCredential):
        mcp.find_payment_item([{"type": "resource", "resource": {"uri": "nuwa:payment"}}])


# ── what was recorded ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_every_recorded_exchange_is_read_and_written_byte_for_byte(
    exchange: dict[str, Any],
) -> None:
    asked, answered = exchange["request"], exchange["response"]
    if "paymentHeader" in asked:
        payload = parse_request_header(asked["paymentHeader"])
        assert payload.header() == asked["paymentHeader"]
        assert payload.document() == asked["payment"]
        assert payload.signed_sub_rav is None or verify_sub_rav(payload.signed_sub_rav, PAYER_KEY)
    if "authorization" in asked:
        auth = parse_did_auth(asked["authorization"])
        assert auth.header() == asked["authorization"]
        assert auth.verifies(PAYER_KEY)
        assert auth.params == asked["auth"]["signed_data"]["params"]
    if "paymentHeader" in answered:
        told = parse_response_header(answered["paymentHeader"])
        assert told.header() == answered["paymentHeader"]
        assert told.document() == answered["payment"]
    form = stream_format(answered["contentType"])
    if form is not None:
        reader = FrameReader(form)
        passed = reader.feed(answered["body"].encode()) + reader.end()
        assert reader.header is not None
        framed = payment_frame(form, parse_response_header(reader.header).header())
        assert b"nuwa" not in passed
        assert answered["body"].encode().endswith(framed)


def recorded(path: str) -> list[dict[str, Any]]:
    exchanges = (exchange for exchange in RECORDED["transcripts"])
    return [each for each in exchanges if each["request"]["path"].endswith(path)]


def test_the_discovery_document_is_read_and_written_byte_for_byte() -> None:
    body = recorded("/info")[0]["response"]["body"]
    info = documents.parse_service_info(body)
    assert msgspec.json.encode(info.document()).decode() == body
    for wrong in ("{}", "[]", "{", body.replace("500000000", "-1")):
        with pytest.raises(InvalidCredential):
            documents.parse_service_info(wrong)


def test_recovery_and_health_are_read_and_written_as_recorded() -> None:
    for number, exchange in enumerate(recorded("/recovery")):
        body = exchange["response"]["body"]
        pending = documents.read_recovered_proposal(body)
        assert (pending is None) == (number == 0)
        data, at = json.loads(body)["data"], json.loads(body)["timestamp"]
        ours = documents.recovery(data["channel"], pending, data["subChannel"], at)
        assert msgspec.json.encode(documents.success(ours, at)).decode() == body
    body = recorded("/health")[0]["response"]["body"]
    at = json.loads(body)["timestamp"]
    ours = documents.success(documents.health("healthy", at), at)
    assert msgspec.json.encode(ours).decode() == body


def test_a_refusal_of_a_route_is_written_as_recorded() -> None:
    for exchange in RECORDED["transcripts"]:
        if exchange["response"]["status"] == 402:
            body = exchange["response"]["body"]
            error = json.loads(body)["error"]
            ours = documents.failure(error["code"], error["message"], error["httpStatus"])
            assert msgspec.json.encode(ours).decode() == body
            with pytest.raises(InvalidCredential):
                documents.read_envelope(body)


@given(signed_sub_ravs)
def test_a_stored_voucher_comes_back_as_it_was_kept(signed: SignedSubRAV) -> None:
    told = documents.success(documents.stored_voucher(signed), "2026-11-20T23:25:52.349Z")
    assert documents.read_stored_voucher(msgspec.json.encode(told)) == signed


def test_a_triggered_claim_is_told_by_sub_channel() -> None:
    told = documents.claim_triggered("0x1", {"a": 2**70}, {"b": "no_delta"})
    assert msgspec.json.encode(told) == (
        b'{"channelId":"0x1","queued":[{"vmIdFragment":"a","delta":1180591620717411303424}],'
        b'"skipped":[{"vmIdFragment":"b","reason":"no_delta"}]}'
    )
