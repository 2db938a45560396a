"""What passes a gateway and what does not."""

from __future__ import annotations

import pytest

from farebox.gateway.asgi import declared_length, header, headers_bytes
from farebox.gateway.headers import KEPT_FROM_UPSTREAM, for_caller, for_upstream, relocated
from farebox.gateway.upstream import Upstream, UpstreamConfig


def test_headers_named_by_connection_stay_on_their_hop() -> None:
    headers = [(b"connection", b"close, X-One , x-two"), (b"x-one", b"1"), (b"x-two", b"2")]
    assert for_upstream([*headers, (b"x-three", b"3")], KEPT_FROM_UPSTREAM) == [(b"x-three", b"3")]
    assert for_caller([*headers, (b"x-three", b"3")]) == [(b"x-three", b"3")]


def test_a_caller_cannot_name_the_content_type_away() -> None:
    headers = [(b"connection", b"content-type"), (b"content-type", b"text/plain")]
    assert for_upstream(headers, KEPT_FROM_UPSTREAM) == [(b"content-type", b"text/plain")]


@pytest.mark.parametrize(
    ("location", "told"),
    [
        (b"http://10.0.0.7:9000/api/v1/x?a=b", b"/v1/x?a=b"),
        (b"HTTP://10.0.0.7:9000/API", b"/"),
        (b"http://10.0.0.7:9000/api?a", b"/?a"),
        (b"http://10.0.0.7:9000/api//evil.example/x", b"/evil.example/x"),
        (b"http://10.0.0.7:9000/apis", b"http://10.0.0.7:9000/apis"),
        (b"http://10.0.0.7:90001/api/x", b"http://10.0.0.7:90001/api/x"),
        (b"https://other.example/api/x", b"https://other.example/api/x"),
        (b"/api/v1/x", b"/v1/x"),
        (b"/v1/x", b"/v1/x"),
        (b"//10.0.0.7:9000/api", b"//10.0.0.7:9000/api"),
    ],
)
def test_a_location_at_the_service_is_told_as_one_here(location: bytes, told: bytes) -> None:
    headers = ((b"location", location), (b"etag", b'"1"'))
    assert relocated(headers, "http://10.0.0.7:9000/api") == (
        (b"location", told),
        (b"etag", b'"1"'),
    )


def test_money_passes_in_neither_direction() -> None:
    money = [(b"x-cashu", b"cashuB"), (b"x-payment", b"x"), (b"x-farebox-receipt", b"forged")]
    assert for_upstream([*money, (b"authorization", b"Bearer sk")], KEPT_FROM_UPSTREAM) == []
    assert for_caller(money) == []


async def test_what_the_operator_sets_replaces_what_the_caller_sent() -> None:
    config = UpstreamConfig(("http://x",), headers={"X-Tenant": "ours", "Authorization": "key"})
    upstream = Upstream(config)
    given = [(b"x-tenant", b"theirs"), (b"accept", b"*/*"), (b"accept-encoding", b"br")]
    assert upstream.headers(given, is_metered=True) == [
        (b"accept", b"*/*"),
        (b"x-tenant", b"ours"),
        (b"authorization", b"key"),
        (b"accept-encoding", b"identity"),
    ]
    assert "key" not in repr(config)


async def test_what_is_kept_out_is_kept_out_with_underscores_too() -> None:
    upstream = Upstream(UpstreamConfig(("http://x",), headers={"X-Tenant": "ours"}))
    names = (b"x_tenant", b"x_cashu", b"x_http_method_override", b"transfer_encoding")
    given = [*((name, b"theirs") for name in names), (b"x_other", b"1")]
    assert upstream.headers(given, is_metered=False) == [(b"x_other", b"1"), (b"x-tenant", b"ours")]


async def test_an_address_that_failed_comes_last_for_a_while() -> None:
    upstream = Upstream(UpstreamConfig(("http://a", "http://b")))
    first, second = upstream.addresses
    first.failed(100.0)
    assert upstream.in_order(100.5) == [second, first]
    assert upstream.in_order(101.5) == [first, second]


def test_lengths_that_are_no_numbers_count_for_nothing() -> None:
    assert declared_length([(b"content-length", b"-5")]) == 0
    assert declared_length([(b"content-length", b"9" * 40)]) == 0
    assert declared_length([(b"content-length", b"17")]) == 17
    assert header([], b"content-length") == b""
    assert headers_bytes([(b"a", b"bc")]) == 7
