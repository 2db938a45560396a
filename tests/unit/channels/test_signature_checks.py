"""Signatures that are due together are checked together, and each caller hears of its own alone."""

from __future__ import annotations

import asyncio

import pytest

from farebox.channels.checks import SignatureChecks
from farebox.wire.subrav.keys import (
    KeyType,
    SigningKey,
    VerificationKey,
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
        signatures.verify(good, KEY.public),
        signatures.verify(forged, KEY.public),
        signatures.verify(foreign, KEY.public),
        signatures.verify(foreign, OTHER.public),
    )

    assert list(told) == [True, False, False, True]
    assert await signatures.verify(good, KEY.public)


async def test_who_gives_up_has_nothing_checked_and_takes_nobody_along() -> None:
    signatures = SignatureChecks()
    left, stays = (signatures.verify(voucher(nonce), KEY.public) for nonce in (1, 2))

    left.cancel()

    assert await stays
    assert left.cancelled()


async def test_a_check_that_breaks_admits_nobody_and_breaks_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(signed: SignedSubRAV, key: VerificationKey) -> bool:
        if signed.sub_rav.nonce == 1:
            raise MemoryError
        return verify_sub_rav(signed, key)

    monkeypatch.setattr("farebox.channels.checks.verify_sub_rav", broken)
    signatures = SignatureChecks()
    first, second = (signatures.verify(voucher(nonce), KEY.public) for nonce in (1, 2))

    with pytest.raises(MemoryError):
        await first
    assert await second
