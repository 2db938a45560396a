"""Vouchers as EIP-712 typed data: what any wallet signs, we take, and the other way round."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct, encode_typed_data
from msgspec.structs import replace

from farebox.errors import InvalidCredential
from farebox.wire.subrav.keys import (
    KeyType,
    SigningKey,
    VerificationKey,
    sign_sub_rav,
    verify_sub_rav,
)
from farebox.wire.subrav.model import SignedSubRAV, SubRAV

CONTRACT = bytes(range(1, 21))
SECRET = b"\x07" * 32
KEY = SigningKey(KeyType.EIP712, SECRET, CONTRACT)
SUB_RAV = SubRAV(
    chain_id=31_337,
    channel_id="0x" + "ab" * 32,
    channel_epoch=3,
    vm_id_fragment="laptop-ü",
    accumulated_amount=2**200 + 5,
    nonce=2**63,
)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def typed(sub_rav: SubRAV, contract: bytes = CONTRACT) -> dict[str, Any]:
    """The voucher as a wallet is shown it (`eth_signTypedData_v4`)."""
    text = {"name": "string", "version": "string", "verifyingContract": "address"}
    fields = {
        "version": ("uint8", sub_rav.version),
        "chainId": ("uint64", sub_rav.chain_id),
        "channelId": ("bytes32", bytes.fromhex(sub_rav.channel_id[2:])),
        "channelEpoch": ("uint64", sub_rav.channel_epoch),
        "vmIdFragment": ("string", sub_rav.vm_id_fragment),
        "accumulatedAmount": ("uint256", sub_rav.accumulated_amount),
        "nonce": ("uint64", sub_rav.nonce),
    }
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": text["name"]},
                {"name": "version", "type": text["version"]},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": text["verifyingContract"]},
            ],
            "SubRAV": [{"name": name, "type": kind} for name, (kind, _) in fields.items()],
        },
        "primaryType": "SubRAV",
        "domain": {
            "name": "Farebox Channels",
            "version": "1",
            "chainId": sub_rav.chain_id,
            "verifyingContract": "0x" + contract.hex(),
        },
        "message": {name: value for name, (_, value) in fields.items()},
    }


def by_wallet(sub_rav: SubRAV, contract: bytes = CONTRACT) -> SignedSubRAV:
    signed = Account.sign_message(encode_typed_data(full_message=typed(sub_rav, contract)), SECRET)
    return SignedSubRAV(sub_rav, bytes(signed.signature)[:64])


def test_a_wallets_voucher_is_ours_to_the_byte() -> None:
    assert sign_sub_rav(SUB_RAV, KEY) == by_wallet(SUB_RAV)
    assert KEY.public.raw == CONTRACT + bytes.fromhex(Account.from_key(SECRET).address[2:])
    assert verify_sub_rav(by_wallet(SUB_RAV), KEY.public)


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": 1},
        {"channel_id": "0x" + "ac" * 32},
        {"channel_epoch": 4},
        {"vm_id_fragment": "laptop"},
        {"accumulated_amount": 5},
        {"nonce": 1},
    ],
    ids=str,
)
def test_no_field_of_a_voucher_can_be_changed(change: dict[str, Any]) -> None:
    signed = sign_sub_rav(SUB_RAV, KEY)
    assert not verify_sub_rav(replace(signed, sub_rav=replace(SUB_RAV, **change)), KEY.public)


def test_a_voucher_is_for_one_contract_and_one_key() -> None:
    other = SigningKey(KeyType.EIP712, SECRET, CONTRACT[::-1])
    assert not verify_sub_rav(by_wallet(SUB_RAV, other.contract), KEY.public)
    assert verify_sub_rav(by_wallet(SUB_RAV, other.contract), other.public)
    another = SigningKey(KeyType.EIP712, b"\x08" * 32, CONTRACT)
    assert not verify_sub_rav(sign_sub_rav(SUB_RAV, another), KEY.public)


def test_the_same_signature_written_another_way_is_refused() -> None:
    signature = sign_sub_rav(SUB_RAV, KEY).signature
    high = (ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    assert not verify_sub_rav(SignedSubRAV(SUB_RAV, signature[:32] + high), KEY.public)


@pytest.mark.parametrize("signature", [b"\0" * 64, b"\xff" * 64, b"\1" * 64])
def test_nonsense_verifies_nothing(signature: bytes) -> None:
    assert not verify_sub_rav(SignedSubRAV(SUB_RAV, signature), KEY.public)


def test_texts_are_signed_as_personal_messages() -> None:
    message = "DIDAuthV1:{…}".encode()
    by_account = Account.sign_message(encode_defunct(message), SECRET)
    assert KEY.sign(message) == bytes(by_account.signature)[:64]
    assert KEY.public.verifies(KEY.sign(message), message)
    assert not KEY.public.verifies(KEY.sign(message), message + b"!")


def test_a_key_names_its_contract_whole() -> None:
    for contract in (b"", CONTRACT[:19], CONTRACT + b"\0"):
        with pytest.raises(InvalidCredential):
            SigningKey(KeyType.EIP712, SECRET, contract)
    with pytest.raises(InvalidCredential):
        SigningKey(KeyType.SECP256K1, SECRET, CONTRACT)
    with pytest.raises(InvalidCredential):
        VerificationKey(KeyType.EIP712, b"\0" * 39)


def test_without_the_library_no_wallets_key_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "eth_hash.auto", None)
    with pytest.raises(InvalidCredential, match="evm"):
        VerificationKey(KeyType.EIP712, bytes(range(40)))
