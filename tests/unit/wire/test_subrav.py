"""SubRAVs on the wire, against what payment-kit 0.7.0 wrote, and against themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.errors import InvalidCredential
from farebox.wire import base58
from farebox.wire.subrav import documents, multibase
from farebox.wire.subrav.bcs import decode_sub_rav, encode_close_proofs, encode_sub_rav
from farebox.wire.subrav.keys import (
    KeyType,
    SigningKey,
    VerificationKey,
    sign_sub_rav,
    verify_sub_rav,
)
from farebox.wire.subrav.model import ErrorCode, SignedSubRAV, SubRAV, http_status
from farebox.wire.subrav.rooch import (
    address_did,
    canonical_coin_type,
    channel_id,
    did_address,
    hub_id,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "subrav.json").read_text())
SUB_RAVS = {vector["name"]: vector for vector in VECTORS["subravs"]}
KEY_TYPES = {
    "ed25519": KeyType.ED25519,
    "secp256k1": KeyType.SECP256K1,
    "ecdsa-r1": KeyType.SECP256R1,
}
DETERMINISTIC = ("ed25519", "secp256k1")

sub_ravs = st.builds(
    SubRAV,
    version=st.integers(0, 255),
    chain_id=st.integers(0, 2**64 - 1),
    channel_id=st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex()),
    channel_epoch=st.integers(0, 2**64 - 1),
    vm_id_fragment=st.text(
        st.characters(categories=("L", "N", "P", "S"), exclude_characters="#"),
        min_size=1,
        max_size=60,
    ),
    accumulated_amount=st.integers(0, 2**256 - 1),
    nonce=st.integers(0, 2**64 - 1),
)


def sub_rav_of(document: dict[str, Any]) -> SubRAV:
    shape = documents.convert(document, documents.SubRavJson, "SubRAV")
    return documents.sub_rav_from(shape)


def signing_key(name: str) -> SigningKey:
    secret = bytes.fromhex(VECTORS["keys"][name]["privateKeyRawHex"])
    return SigningKey(KEY_TYPES[name], secret)


BASIC = sub_rav_of(SUB_RAVS["basic"]["subRav"])


@pytest.mark.parametrize("vector", VECTORS["subravs"], ids=lambda v: v["name"])
def test_a_sub_rav_is_encoded_as_payment_kit_does(vector: dict[str, Any]) -> None:
    sub_rav = sub_rav_of(vector["subRav"])
    assert encode_sub_rav(sub_rav).hex() == vector["bcsHex"]
    assert decode_sub_rav(bytes.fromhex(vector["bcsHex"])) == sub_rav
    assert documents.sub_rav_document(sub_rav) == vector["decodesTo"]


@pytest.mark.parametrize("vector", VECTORS["subravs"], ids=lambda v: v["name"])
@pytest.mark.parametrize("name", KEY_TYPES)
def test_its_signatures_hold_and_travel_as_payment_kit_writes_them(
    vector: dict[str, Any], name: str
) -> None:
    told = vector["signatures"][name]
    key, sub_rav = signing_key(name), sub_rav_of(vector["subRav"])
    signed = SignedSubRAV(sub_rav, bytes.fromhex(told["hex"]))
    assert verify_sub_rav(signed, key.public) is told["verifies"] is True
    assert multibase.encode(signed.signature) == told["wire"]
    assert documents.signed_document(signed)["signature"] == told["wire"]
    ours = sign_sub_rav(sub_rav, key)
    assert verify_sub_rav(ours, key.public)
    if name in DETERMINISTIC:
        assert ours == signed


@pytest.mark.parametrize("name", KEY_TYPES)
def test_keys_are_written_as_did_documents_have_them(name: str) -> None:
    told, public = VECTORS["keys"][name], signing_key(name).public
    assert public.raw.hex() == told["publicKeyHex"]
    assert public.multibase == told["publicKeyMultibase_inDidDoc"]
    assert VerificationKey.from_multibase(KEY_TYPES[name], public.multibase) == public
    assert public.did_key == told["didKey"]
    assert VerificationKey.from_did_key(told["didKey"]) == public
    assert told["privateKeyRawHex"] not in repr(signing_key(name))


def test_a_did_key_of_p256_is_read_as_everybody_else_writes_it() -> None:
    public = signing_key("ecdsa-r1").public
    did = "did:key:z" + base58.encode(b"\x80\x24" + public.raw)
    assert VerificationKey.from_did_key(did) == public


@pytest.mark.parametrize("did", ["did:key:z6Mk", "did:key:", "z6Mk", "did:key:z0", "did:key:z2"])
def test_a_did_that_is_no_key_is_refused(did: str) -> None:
    with pytest.raises(InvalidCredential):
        VerificationKey.from_did_key(did)


@pytest.mark.parametrize("vector", VECTORS["signatureNegatives"], ids=lambda v: v["case"])
def test_what_payment_kit_refuses_is_no_signature(vector: dict[str, Any]) -> None:
    key, good = signing_key(vector["key"]), SUB_RAVS["basic"]["signatures"][vector["key"]]["hex"]
    sub_rav, signature = BASIC, bytes.fromhex(vector.get("sigHex", good))
    if vector["case"] == "amount+1":
        sub_rav = sub_rav_of(SUB_RAVS["basic"]["subRav"] | {"accumulatedAmount": "10001"})
    elif vector["case"].startswith("first"):
        signature = bytes((signature[0] ^ 1, *signature[1:]))
    assert verify_sub_rav(SignedSubRAV(BASIC, bytes.fromhex(good)), key.public)
    assert verify_sub_rav(SignedSubRAV(sub_rav, signature), key.public) is vector["verifies"]


@pytest.mark.parametrize("name", ["secp256k1", "ecdsa-r1"])
def test_either_s_is_good_on_p256_alone(name: str) -> None:
    order = {
        "secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
        "ecdsa-r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    }[name]
    key = signing_key(name)
    signature = sign_sub_rav(BASIC, key).signature
    twin = order - int.from_bytes(signature[32:], "big")
    other = SignedSubRAV(BASIC, signature[:32] + twin.to_bytes(32, "big"))
    assert verify_sub_rav(other, key.public) is (name == "ecdsa-r1")


@pytest.mark.parametrize("name", KEY_TYPES)
@settings(max_examples=30)
@given(sub_rav=sub_ravs, flipped=st.integers(0, 511))
def test_a_signature_is_good_for_its_own_bytes_alone(
    name: str, sub_rav: SubRAV, flipped: int
) -> None:
    key = signing_key(name)
    signed = sign_sub_rav(sub_rav, key)
    assert verify_sub_rav(signed, key.public)
    bent = bytearray(signed.signature)
    bent[flipped // 8] ^= 1 << flipped % 8
    assert not verify_sub_rav(SignedSubRAV(sub_rav, bytes(bent)), key.public)


@pytest.mark.parametrize("vector", VECTORS["encodeRejects"], ids=lambda v: v["name"])
def test_what_cannot_be_encoded_is_refused(vector: dict[str, Any]) -> None:
    """The last of them payment-kit takes: an id without its 0x. Strict here, as its bytes show."""
    changes: dict[str, dict[str, Any]] = {
        "negative_chain_id": {"chainId": -1},
        "amount_overflow": {"accumulatedAmount": str(2**256)},
        "version_256": {"version": 256},
        "channel_id_no_0x": {"channelId": BASIC.channel_id[2:]},
    }
    change = changes[vector["name"]]
    with pytest.raises(InvalidCredential):
        sub_rav_of(SUB_RAVS["basic"]["subRav"] | change)
    assert vector["result"] == "throws" or vector["bcsHex"] == SUB_RAVS["basic"]["bcsHex"]


@pytest.mark.parametrize(
    "change",
    [
        {"channelId": "0x35df"},
        {"channelId": BASIC.channel_id.upper()},
        {"channelId": BASIC.channel_id + "\n"},
        {"nonce": "01"},
        {"nonce": "1.0"},
        {"nonce": 1.0},
        {"nonce": True},
        {"nonce": "+1"},
        {"nonce": "1" * 100_000},
        {"nonce": "１"},
        {"nonce": str(2**64)},
        {"vmIdFragment": ""},
        {"vmIdFragment": "k" * 256},
        {"vmIdFragment": "a#b"},
        {"vmIdFragment": "a\nb"},
        {"vmIdFragment": None},
    ],
    ids=str,
)
def test_a_sub_rav_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidCredential):
        sub_rav_of(SUB_RAVS["basic"]["subRav"] | change)


@given(sub_ravs)
def test_encoding_and_documents_give_back_what_they_were_given(sub_rav: SubRAV) -> None:
    assert decode_sub_rav(encode_sub_rav(sub_rav)) == sub_rav
    assert sub_rav_of(json.loads(json.dumps(documents.sub_rav_document(sub_rav)))) == sub_rav


def bent(sub_rav: SubRAV, at: int, byte: int) -> bytes:
    raw = bytearray(encode_sub_rav(sub_rav))
    raw[at % len(raw)] = byte
    return bytes(raw)


@given(
    st.binary(max_size=400) | st.builds(bent, sub_ravs, st.integers(0, 400), st.integers(0, 255))
)
def test_bytes_are_read_as_what_they_say_or_not_at_all(raw: bytes) -> None:
    try:
        sub_rav = decode_sub_rav(raw)
    except InvalidCredential:
        return
    assert encode_sub_rav(sub_rav) == raw


def test_channels_and_hubs_are_named_as_on_rooch() -> None:
    for vector in VECTORS["channelIds"]:
        named = channel_id(vector["payerDid"], vector["payeeDid"], vector["assetId"])
        assert named == vector["channelId"]
    first, hub = VECTORS["channelIds"][0], VECTORS["paymentHubId"]
    assert canonical_coin_type(first["assetId"]) == first["canonicalCoinType"]
    assert hub_id(hub["ownerDid"]) == hub["hubId"]
    payer = VECTORS["identities"]["payerDid"]
    assert "0x" + did_address(payer).hex() == VECTORS["identities"]["payerAddressHex"]
    assert address_did(did_address(payer)) == payer


@pytest.mark.parametrize(
    "did", ["did:key:z6Mk", "did:rooch:rooch1", "did:rooch:rooch1qqqq", "rooch1", ""]
)
def test_a_did_without_a_rooch_address_names_no_channel(did: str) -> None:
    with pytest.raises(InvalidCredential):
        hub_id(did)


@pytest.mark.parametrize("asset", ["RGas", "0x::a::b", "0x3::a", "0x3::a::b::c", "0x" + "1" * 65])
def test_an_asset_that_is_no_coin_type_is_refused(asset: str) -> None:
    with pytest.raises(InvalidCredential):
        canonical_coin_type(asset)


def test_closing_takes_the_last_voucher_of_each_sub_channel() -> None:
    signature = bytes.fromhex(SUB_RAVS["basic"]["signatures"]["ed25519"]["hex"])
    proofs = encode_close_proofs([SignedSubRAV(BASIC, signature)])
    assert proofs.hex() == VECTORS["closeProofsBcsHex"]


def test_every_code_has_the_status_that_payment_kit_gives_it() -> None:
    statuses = {code.value: http_status(code) for code in ErrorCode}
    assert statuses.items() >= VECTORS["errorStatuses"].items()


@given(st.binary(max_size=64))
def test_base58_and_multibase_give_back_what_they_were_given(raw: bytes) -> None:
    assert base58.decode(base58.encode(raw)) == raw
    assert multibase.decode(multibase.encode(raw), 100, "text") == raw


@pytest.mark.parametrize(
    "text", ["", "zQ", "uQQ==", "uQR", "u+w", "u/w", "uQ", "u Q", "uQQ\n", "ué"]
)
def test_one_byte_string_has_one_multibase_text(text: str) -> None:
    with pytest.raises(InvalidCredential):
        multibase.decode(text, 100, "text")


@pytest.mark.parametrize(
    ("key_type", "raw"),
    [
        (KeyType.ED25519, b"\1" * 31),
        (KeyType.SECP256K1, b"\2" + b"\xff" * 32),
        (KeyType.SECP256K1, b"\4" + b"\1" * 64),
        (KeyType.SECP256R1, b"\2" + b"\xff" * 32),
        (KeyType.SECP256R1, b""),
    ],
)
def test_what_is_no_point_is_no_key(key_type: KeyType, raw: bytes) -> None:
    with pytest.raises(InvalidCredential):
        VerificationKey(key_type, raw)
