"""The cryptography, against the specifications' vectors and against itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemonic import Mnemonic

from farebox.errors import InvalidCredential, SignerError
from farebox.wire.cashu import crypto
from farebox.wire.cashu.documents import KeysetJson, OutputJson, convert, keyset_from, output_from
from farebox.wire.cashu.keysets import has_honest_id, keyset_id_v1, keyset_id_v2
from farebox.wire.cashu.locks import is_locked_to, is_unlocked, p2pk_secret, parse_lock, unlock
from farebox.wire.cashu.model import Dleq, Keyset, Proof
from farebox.wire.cashu.wallet_keys import WalletKeys

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "cashu.json").read_text())
K = bytes.fromhex("7f" * 32)
R = bytes.fromhex("99fce58439fc37412ab3468b73db0569322588f62fb3a49182d67e23d877824a")


@pytest.mark.parametrize(
    ("message", "point"),
    [
        ("00" * 32, "024cce997d3b518f739663b757deaec95bcd9473c30a14ac2fd04023a739d1a725"),
        ("00" * 31 + "01", "022e7158e11c9506f1aa4248bf531298daa7febd6194f003edcd9b93ade6253acf"),
        ("00" * 31 + "02", "026cdbe15362df59cd1dd3c9c11de8aedac2106eca69236ecd9fbe117af897be4f"),
    ],
)
def test_hash_to_curve_matches_the_vectors(message: str, point: str) -> None:
    assert crypto.hash_to_curve(bytes.fromhex(message)).hex() == point


def test_blinding_matches_the_vectors() -> None:
    first = bytes.fromhex("d341ee4871f1f889041e63cf0d3823c713eea6aff01e80f1719f08f9e5be98f6")
    second = bytes.fromhex("f1aaf16c2239746f369572c0784d9dd3d032d952c2d992175873fb58fae31a60")
    other_r = bytes.fromhex("f78476ea7cc9ade20f9e05e58a804cf19533f03ea805ece5fee88c8e2874ba50")
    assert crypto.blind(first, R).hex() == (
        "033b1a9737a40cc3fd9b6af4b723632b76a67a36782596304612a6c2bfb5197e6d"
    )
    assert crypto.blind(second, other_r).hex() == (
        "029bdf2d716ee366eddf599ba252786c1033f47e230248a4612a5670ab931f1763"
    )


def test_signing_matches_the_vectors() -> None:
    blinded = bytes.fromhex("02a9acc1e48c25eeeb9289b5031cc57da9fe72f3fe2861d264bdc074209b107ba2")
    assert crypto.sign_blinded(blinded, b"\0" * 31 + b"\1") == blinded
    assert crypto.sign_blinded(blinded, K).hex() == (
        "0398bc70ce8184d27ba89834d19f5199c84443c31131e48d3c1214db24247d005d"
    )


@given(st.text(min_size=1, max_size=40), st.binary(min_size=32, max_size=32))
def test_what_is_blinded_signed_and_unblinded_is_a_signature_on_the_secret(
    secret: str, raw: bytes
) -> None:
    r = hashlib.sha256(raw).digest()
    signature = crypto.sign_blinded(crypto.blind(secret, r), K)
    unblinded = crypto.unblind(signature, r, crypto.public_key(K))
    assert crypto.is_signed(secret, unblinded, K)
    assert not crypto.is_signed(secret + "x", unblinded, K)


def test_the_dleq_nonce_is_derived_as_specified() -> None:
    k = b"\0" * 31 + b"\2"
    b = bytes.fromhex("02a9acc1e48c25eeeb9289b5031cc57da9fe72f3fe2861d264bdc074209b107ba2")
    c = bytes.fromhex("0244eccfc7a348274458bb38044c7f3c389b3c2086c7ec18b5812d2877ab937787")
    dleq = crypto.prove_dleq(b, c, k)
    assert dleq.e.hex() == "2a16ffee280aff3c429045607f9b8e0bf8b35910c44c1b20b9dfaf01b263d7b3"
    assert dleq.s.hex() == "9df27731238334718d120d4f74611a7c668233f988e687ac3fb188f0a34a2dab"
    assert crypto.is_dleq_valid(b, c, dleq, crypto.public_key(k))


def test_the_dleq_vectors_verify_and_their_alterations_do_not() -> None:
    mint_key = crypto.public_key(b"\0" * 31 + b"\1")
    b = bytes.fromhex("02a9acc1e48c25eeeb9289b5031cc57da9fe72f3fe2861d264bdc074209b107ba2")
    e = bytes.fromhex("9818e061ee51d5c8edc3342369a554998ff7b4381c8652d724cdf46429be73d9")
    s = bytes.fromhex("9818e061ee51d5c8edc3342369a554998ff7b4381c8652d724cdf46429be73da")
    assert crypto.is_dleq_valid(b, b, Dleq(e, s), mint_key)
    assert not crypto.is_dleq_valid(b, b, Dleq(e, e), mint_key)
    assert not crypto.is_dleq_valid(b, b, Dleq(b"\0" * 32, s), mint_key)
    assert not crypto.is_dleq_valid(b, b, Dleq(b"\xff" * 32, b"\xff" * 32), mint_key)
    assert not crypto.is_dleq_valid(b, b"junk", Dleq(e, s), mint_key)


def proof_vector() -> Proof:
    def raw(text: str) -> bytes:
        return bytes.fromhex(text)

    return Proof(
        1,
        "00882760bfa2eb41",
        "daf4dd00a2b68a0858a80450f52c8a7d2ccf87d375e43e216e0c571f089f63e9",
        raw("024369d2d22a80ecf78f3937da9d5f30c1b9f74f0c32684d583cca0fa6a61cdcfc"),
        Dleq(
            raw("b31e58ac6527f34975ffab13e70a48b6d2b0d35abc4b03f0151f09ee1a9763d4"),
            raw("8fbae004c59e754d71df67e392b6ae4e29293113ddc2ec86592a0431d16306d8"),
            raw("a6d13fcd7a18442e6076f5e1e7c887ad5de40a019824bdfa9fe740d302e8d861"),
        ),
    )


def test_a_proof_shows_offline_that_its_mint_signed_it() -> None:
    mint_key = crypto.public_key(b"\0" * 31 + b"\1")
    proof = proof_vector()
    assert crypto.is_proof_dleq_valid(proof, mint_key)
    assert not crypto.is_proof_dleq_valid(replace(proof, secret="other"), mint_key)
    assert not crypto.is_proof_dleq_valid(proof, crypto.public_key(K))
    assert not crypto.is_proof_dleq_valid(replace(proof, dleq=None), mint_key)


@pytest.mark.parametrize("keyset_id", ["009a1f293253e41e", VECTORS["keysets_v2"][0]["id"]])
def test_deterministic_secrets_match_the_vectors(keyset_id: str) -> None:
    wallet = WalletKeys(Mnemonic.to_seed(VECTORS["deterministic"]["mnemonic"]))
    expected = VECTORS["deterministic"][keyset_id]
    derived = [wallet.output_secret(keyset_id, counter) for counter in range(5)]
    assert [one.secret for one in derived] == expected["secrets"]
    assert [one.r.hex() for one in derived] == expected["r"]


def test_wallet_keys_refuse_what_they_cannot_derive() -> None:
    wallet = WalletKeys(b"s" * 32)
    for keyset_id, counter in (("ff" * 8, 0), ("00" * 8, -1), ("00" * 8, 2**31)):
        with pytest.raises(InvalidCredential):
            wallet.output_secret(keyset_id, counter)
    with pytest.raises(SignerError):
        WalletKeys(b"short")


def test_each_mint_quote_has_a_key_of_its_own() -> None:
    wallet = WalletKeys(b"s" * 32)
    assert wallet.quote_key("a") == wallet.quote_key("a") != wallet.quote_key("b")


def test_keyset_ids_match_the_vectors() -> None:
    for vector in VECTORS["keysets_v1"]:
        keys = {int(amount): bytes.fromhex(key) for amount, key in vector["keys"].items()}
        assert keyset_id_v1(keys) == vector["id"]
    for vector in VECTORS["keysets_v2"]:
        keyset = keyset_from(convert(vector | {"active": True}, KeysetJson, "keyset"))
        assert has_honest_id(keyset)
        assert not has_honest_id(replace(keyset, input_fee_ppk=keyset.input_fee_ppk + 1))
        assert not has_honest_id(replace(keyset, unit="usd"))
        assert not has_honest_id(replace(keyset, final_expiry=1))


def test_a_fee_of_zero_is_left_out_of_the_keyset_id() -> None:
    assert keyset_id_v2({1: b"\2"}, "sat", 0, None) == keyset_id_v2({1: b"\2"}, "sat", 0, 0)
    keyset = Keyset("02" + "0" * 64, "sat", True, 0, None, {})
    assert not has_honest_id(keyset)


@pytest.mark.parametrize("keys", VECTORS["keys_bad"])
def test_keysets_with_malformed_keys_are_refused(keys: dict[str, str]) -> None:
    shape = KeysetJson("00" * 8, "sat", keys=keys)
    with pytest.raises(InvalidCredential):
        keyset_from(shape)


def test_keyset_amounts_that_are_no_numbers_are_refused() -> None:
    good = next(iter(VECTORS["keysets_v1"][0]["keys"].values()))
    for amount in ("x", "-1", "", "9" * 21, "١"):
        with pytest.raises(InvalidCredential):
            keyset_from(KeysetJson("00" * 8, "sat", keys={amount: good}))


def test_mint_quote_signatures_match_the_vectors() -> None:
    key = bytes.fromhex(VECTORS["mint_quote"]["public_key"])
    for name, expected in (("valid", True), ("invalid", False)):
        request = VECTORS["mint_quote"][name]
        outputs = [output_from(convert(item, OutputJson, "output")) for item in request["outputs"]]
        signed = crypto.is_mint_quote_signed(key, request["quote"], outputs, request["signature"])
        assert signed is expected
        ours = crypto.sign_mint_quote(K, request["quote"], outputs)
        assert crypto.is_mint_quote_signed(crypto.public_key(K), request["quote"], outputs, ours)


def test_a_p2pk_vector_is_recognised_and_its_signature_verifies() -> None:
    vector = VECTORS["p2pk"][2]
    lock = parse_lock(vector["secret"])
    assert lock is not None
    key = bytes.fromhex(lock.data)
    signature = json.loads(vector["witness"])["signatures"][0]
    assert lock.opens_with(key)
    assert crypto.is_secret_signed(key, vector["secret"], signature)
    assert not crypto.is_secret_signed(key, vector["secret"] + " ", signature)
    assert not crypto.is_secret_signed(key, vector["secret"], "zz")


def test_a_proof_locked_to_us_unlocks_with_our_key_only() -> None:
    ours = crypto.public_key(K)
    secret = p2pk_secret("00", ours)
    lock = parse_lock(secret)
    assert lock is not None
    assert lock.opens_with(ours)
    assert not lock.opens_with(crypto.public_key(R))
    proof = unlock(Proof(1, "00" * 8, secret, ours), K)
    signatures = json.loads(proof.witness or "")["signatures"]
    assert crypto.is_secret_signed(ours, secret, signatures[0])


OURS = crypto.public_key(K).hex()


@pytest.mark.parametrize(
    "secret",
    [
        json.dumps(["HTLC", {"nonce": "1", "data": OURS, "tags": []}]),
        json.dumps(["P2PK", {"nonce": "1", "data": OURS, "tags": [["n_sigs", "2"]]}]),
        json.dumps(["P2PK", {"nonce": "1", "data": OURS, "tags": [["sigflag", "SIG_ALL"]]}]),
        json.dumps(["P2PK", {"nonce": "1", "data": OURS, "tags": [["sigflag", "SIG_NEW"]]}]),
        json.dumps(["P2PK", {"nonce": "1", "data": OURS, "tags": [["a", "1"], ["a", "2"]]}]),
        json.dumps(["P2PK", {"nonce": "1", "data": OURS, "tags": [["pubkeys", OURS]]}]),
        json.dumps(["P2PK", {"nonce": "1", "data": OURS, "tags": [["locktime", 5]]}]),
        json.dumps(["P2PK", {"nonce": "1", "data": 5}]),
        json.dumps(["P2PK"]),
        "[broken",
        "[" * 5000,
        " " + json.dumps(["NEW", {"nonce": "1", "data": OURS}]),
    ],
)
def test_a_lock_that_our_signature_alone_does_not_open_is_never_taken_for_ours(
    secret: str,
) -> None:
    lock = parse_lock(secret)
    assert lock is not None
    assert not lock.opens_with(crypto.public_key(K))


NOW_S = 1_750_000_000
LATE = str(NOW_S + 1)


def _with_key(text: str) -> str:
    return text.replace("OURS", OURS)


def _secret(body: dict[str, object]) -> str:
    return json.dumps(["P2PK", body], separators=(",", ":"))


@pytest.mark.parametrize(
    "secret",
    [
        p2pk_secret("1", crypto.public_key(K)),
        json.dumps(["P2PK", {"nonce": "1", "data": OURS}], separators=(",", ":")),
        _with_key('["P2PK", {"data": "OURS", "nonce": "1", "tags": [["sigflag", "SIG_INPUTS"]]}]'),
        p2pk_secret("1", crypto.public_key(K), (("locktime", LATE), ("refund", "02" + "a" * 64))),
        p2pk_secret("1", crypto.public_key(K), (("refund", "02" + "a" * 64), ("n_sigs", "1"))),
    ],
)
def test_a_lock_that_only_our_key_opens_is_told(secret: str) -> None:
    assert is_locked_to(secret, crypto.public_key(K), NOW_S)


@pytest.mark.parametrize(
    "secret",
    [
        "ab" * 32,
        " " + p2pk_secret("1", crypto.public_key(K)),
        _with_key('[ "P2PK",{"nonce":"1","data":"OURS","tags":[]}]'),
        _with_key('["P2PK",{"nonce":"1","data":"OURS","data":"OURS"}]'),
        _with_key('["P2PK",{"nonce":"1","data":"OURS"},{}]'),
        _secret({"data": OURS, "tags": []}),
        _secret({"nonce": None, "data": OURS}),
        _secret({"nonce": "1", "data": OURS, "tags": None}),
        _secret({"nonce": "1", "data": OURS, "more": "members"}),
        _secret({"nonce": "1", "data": OURS.upper()}),
        _secret({"nonce": "1", "data": ("03" if OURS[:2] == "02" else "02") + OURS[2:]}),
        _secret({"nonce": "1", "data": "02" + "a" * 64}),
        _secret({"nonce": "1", "data": OURS, "tags": [["pubkeys", "02" + "a" * 64]]}),
        _secret({"nonce": "1", "data": OURS, "tags": [["locktime", str(NOW_S)]]}),
        _secret({"nonce": "1", "data": OURS, "tags": [["locktime", "-5"]]}),
        _secret({"nonce": "1", "data": OURS, "tags": [["locktime", "1e99"]]}),
        _secret({"nonce": "1", "data": OURS, "tags": [["locktime"]]}),
        _secret({"nonce": "1", "data": OURS, "tags": [["locktime", LATE, "5"]]}),
        _secret({"nonce": "1", "data": OURS, "tags": [["locktime", LATE], ["locktime", "5"]]}),
        _secret({"nonce": "1", "data": OURS, "tags": [["unheard-of", "1"]]}),
        _secret({"nonce": "1", "data": OURS, "tags": [["sigflag", "SIG_ALL"]]}),
    ],
)
def test_a_lock_that_some_mint_may_read_in_another_way_is_not_ours_alone(secret: str) -> None:
    assert not is_locked_to(secret, crypto.public_key(K), NOW_S)


@given(st.text(max_size=60))
def test_telling_whose_a_lock_is_never_raises(noise: str) -> None:
    begun = _with_key('["P2PK",{"nonce":"1","data":"OURS"')
    for text in (noise, '["P2PK",' + noise, begun + noise):
        is_locked_to(text, crypto.public_key(K), NOW_S)


def test_a_mint_opens_a_lock_to_its_key_or_after_its_time_to_others() -> None:
    theirs = b"t" * 32
    refund = (("locktime", str(NOW_S)), ("refund", crypto.public_key(theirs).hex()))
    proof = Proof(1, "00" * 8, p2pk_secret("1", crypto.public_key(K), refund), b"")
    assert not is_unlocked(proof, NOW_S)
    assert is_unlocked(unlock(proof, K), 0)
    assert not is_unlocked(unlock(proof, theirs), NOW_S - 1)
    assert is_unlocked(unlock(proof, theirs), NOW_S)
    free = Proof(1, "00" * 8, p2pk_secret("1", crypto.public_key(K), refund[:1]), b"")
    assert not is_unlocked(free, NOW_S - 1)
    assert is_unlocked(free, NOW_S)


def test_an_ordinary_secret_is_no_lock() -> None:
    assert parse_lock("ab" * 32) is None
    assert parse_lock("") is None


def test_the_times_and_keys_of_a_lock_are_read() -> None:
    lock = parse_lock(VECTORS["p2pk"][7]["secret"])
    assert lock is not None
    assert lock.locktime == 99999999999
    assert len(lock.refund_keys) == 1


@given(st.text(max_size=60))
def test_reading_a_lock_never_raises(noise: str) -> None:
    parse_lock(noise)
    parse_lock("[" + noise)
