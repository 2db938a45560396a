"""Addresses that callers choose lead to the public Internet or nowhere."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from farebox.rails.web.guard import is_public, open_guarded_session

PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1%eth0",
    "fc00::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "not an address",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_told_apart(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_no_connection_is_made_to_a_private_address(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://{host}:{listener.getsockname()[1]}/"
        async with open_guarded_session() as session:
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(url)

        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_the_guard_can_be_lifted_for_tests() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with open_guarded_session(allow_private=True) as session:
            asking = asyncio.ensure_future(session.get(f"http://127.0.0.1:{port}/"))
            listener.settimeout(60)
            (await asyncio.to_thread(listener.accept))[0].close()
            asking.cancel()
