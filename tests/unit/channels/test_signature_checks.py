"""Signatures that are due together are checked together, and each caller hears of its own alone."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from farebox.channels.checks import SignatureChecks
from farebox.wire.subrav.keys import (
    KeyType,
    SigningKey,
    sign_sub_rav,
    verify_sub_rav,
)
from farebox.wire.subrav.model import SignedSubRAV, SubRAV

KEY = SigningKey(KeyType.ED25519, b"\x01" * 32)
OTHER = SigningKey(KeyType.SECP256K1, b"\x02" * 32)


def voucher(nonce: int, key: SigningKey = KEY) -> SignedSubRAV:
    return sign_sub_rav(
        SubRAV(
            chain_id=4,
            channel_id="0x" + "ab" * 32,
            channel_epoch=0,
            vm_id_fragment="key",
            accumulated_amount=10 * nonce,
            nonce=nonce,
        ),
        key,
    )


async def test_a_forged_voucher_among_good_ones_is_the_only_one_refused() -> None:
    signatures = SignatureChecks()
    good, foreign = voucher(1), voucher(2, OTHER)
    forged = SignedSubRAV(voucher(3).sub_rav, good.signature)

    told = await asyncio.gather(
        signatures.run(partial(verify_sub_rav, good, KEY.public)),
        signatures.run(partial(verify_sub_rav, forged, KEY.public)),
        signatures.run(partial(verify_sub_rav, foreign, KEY.public)),
        signatures.run(partial(verify_sub_rav, foreign, OTHER.public)),
    )

    assert list(told) == [True, False, False, True]
    assert await signatures.run(partial(verify_sub_rav, good, KEY.public))


async def test_who_gives_up_has_nothing_checked_and_takes_nobody_along() -> None:
    signatures, ran = SignatureChecks(), []

    def check(name: str) -> bool:
        ran.append(name)
        return True

    left, stays = (signatures.run(partial(check, name)) for name in ("left", "stays"))

    left.cancel()

    assert await stays
    assert ran == ["stays"]


async def test_a_check_that_breaks_admits_nobody_and_breaks_no_other() -> None:
    def broken() -> bool:
        raise MemoryError

    signatures = SignatureChecks()
    first, second = signatures.run(broken), signatures.run(lambda: True)

    with pytest.raises(MemoryError):
        await first
    assert await second
