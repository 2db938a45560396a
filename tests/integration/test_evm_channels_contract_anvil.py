"""The channel contract pays what was signed, once, to whom it is due, and nobody else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from eth_utils.crypto import keccak

from farebox.rails.evm.contracts import ABIS, artifact
from farebox.wire.subrav.model import SignedSubRAV
from tests.integration.evm_channels import (
    CLOSED,
    CLOSING,
    DAY_S,
    FRAGMENT,
    NO_TOKEN,
    OPEN,
    SOURCE,
    Pair,
    deployed,
    key_of,
    packed,
    party,
    signer,
)
from tests.integration.evm_contracts import interfaces
from tests.peers.anvil import CHAIN_ID, CONTRACTS, Anvil, Contract

pytestmark = pytest.mark.peer
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.fixture
def anvil(anvil_ahead: Anvil) -> Anvil:
    return anvil_ahead


@pytest.fixture
def contract(anvil: Anvil) -> Contract:
    return deployed(anvil)


@pytest.fixture
def pair(anvil: Anvil, contract: Contract) -> Pair:
    """Backed by ether, and not open yet."""
    return Pair(anvil, contract, party(anvil), party(anvil))


def with_token(pair: Pair, name: str) -> Pair:
    """The same two, backed by a new token."""
    token = pair.anvil.deploy(CONTRACTS / f"{name}.sol")
    return Pair(pair.anvil, pair.contract, pair.payer, pair.payee, token)


def selector(error: str) -> str:
    """How a node tells of an error of the contract's own."""
    return keccak(text=error)[:4].hex()


NOT_NOW = selector("NotNow(uint8)")
BAD_SIGNATURE = selector("BadSignature()")
BAD_VOUCHER = selector("BadVoucher()")
BAD_KEY = selector("BadKey()")
BAD_FRAGMENT = selector("BadFragment()")
BAD_PARTY = selector("BadParty()")
NOT_THE_PAYER = selector("NotThePayer()")
WRONG_VALUE = selector("WrongValue()")
NOTHING_ARRIVED = selector("NothingArrived()")
TRANSFER_FAILED = selector("TransferFailed()")


def test_the_abi_is_what_the_source_compiles_to_and_the_code_is_the_artifacts_anvil(
    pair: Pair,
) -> None:
    assert ABIS.read_text() == interfaces()
    code = pair.anvil.rpc("eth_getCode", pair.contract.address, "latest")
    assert code == artifact(SOURCE.stem).runtime


# ── money ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", ["", "PlainToken", "TetherLike"])
def test_a_channel_pays_its_newest_vouchers_and_gives_back_the_rest(pair: Pair, token: str) -> None:
    pair = with_token(pair, token) if token else pair
    before, others = pair.held(pair.payee), pair.held(pair.contract.address)
    pair.open(1_000)
    assert (pair.status, pair.collateral) == (OPEN, 1_000)
    stranger = party(pair.anvil)
    pair.claim(pair.voucher(100), sender=stranger)
    pair.claim(pair.voucher(350, nonce=9), sender=stranger)
    assert pair.held(pair.payee) - before == pair.claimed() == 350
    assert pair.collateral == 650
    pair.request_close()
    pair.wait(DAY_S)
    payer_before = pair.held(pair.payer)
    pair.close(stranger, pair.voucher(400, nonce=10))
    assert pair.held(pair.payee) - before == 400
    assert pair.held(pair.payer) - payer_before == 600
    assert (pair.status, pair.collateral) == (CLOSED, 0)
    assert pair.held(pair.contract.address) == others


def test_many_vouchers_of_several_keys_and_channels_are_paid_in_one_transaction(
    pair: Pair,
) -> None:
    pair = with_token(pair, "PlainToken")
    other = Pair(pair.anvil, pair.contract, party(pair.anvil), pair.payee, pair.token)
    third = Pair(pair.anvil, pair.contract, pair.payer, party(pair.anvil))
    phone = signer(pair.contract)
    for one in (pair, other, third):
        one.open(1_000)
    pair.open(1_000, "phone", phone)
    vouchers = (
        pair.voucher(10),
        pair.voucher(20, key=phone, vm_id_fragment="phone"),
        third.voucher(40),
        other.voucher(80),
    )
    pair.claim(*vouchers, sender=party(pair.anvil))
    assert (pair.claimed(), pair.claimed("phone"), other.claimed(), third.claimed()) == (
        (10, 20, 80, 40)
    )
    assert pair.held(pair.payee) == 110


def test_the_same_voucher_and_an_older_one_move_nothing_and_harm_no_other(pair: Pair) -> None:
    pair.open(1_000)
    newest, older = pair.voucher(100, nonce=2), pair.voucher(50)
    pair.claim(newest)
    before = pair.held(pair.payee)
    stranger = party(pair.anvil)
    pair.claim(newest, older, pair.voucher(120, nonce=3), newest, sender=stranger)
    assert pair.held(pair.payee) - before == 20


def test_a_voucher_above_the_collateral_is_paid_in_part_and_the_rest_after_a_top_up(
    pair: Pair,
) -> None:
    pair.open(100)
    stranger, before = party(pair.anvil), pair.held(pair.payee)
    pair.claim(pair.voucher(250), sender=stranger)
    assert (pair.claimed(), pair.collateral) == (100, 0)
    pair.claim(pair.voucher(2**255, nonce=2), sender=stranger)
    assert (pair.claimed(), pair.held(pair.payee) - before) == (100, 100)
    pair.does(stranger, "topUp", bytes.fromhex(pair.channel_id[2:]), 500, value=500)
    pair.claim(pair.voucher(250), sender=stranger)
    assert (pair.claimed(), pair.collateral) == (250, 350)


def test_what_one_channel_owes_is_never_paid_by_another(pair: Pair) -> None:
    other = Pair(pair.anvil, pair.contract, party(pair.anvil), party(pair.anvil))
    pair.open(100)
    other.open(10_000)
    pair.claim(pair.voucher(5_000))
    assert (pair.claimed(), other.collateral) == (100, 10_000)


def test_a_claim_takes_the_gas_that_the_page_says(pair: Pair) -> None:
    payee, token = pair.payee, pair.anvil.deploy(CONTRACTS / "PlainToken.sol")
    pairs = [Pair(pair.anvil, pair.contract, party(pair.anvil), payee, token) for _ in range(11)]
    for one in pairs:
        one.open(1_000)

    def gas(*channels: Pair, amount: int) -> int:
        vouchers = [one.voucher(amount, nonce=amount) for one in channels]
        return int(pair.claim(*vouchers)["gasUsed"], 16)

    gas(*pairs, amount=1)  # the first claim of a sub-channel takes more
    alone, ten = gas(pairs[0], amount=2), gas(*pairs[1:], amount=2)
    each = (ten - alone) // 9
    told = (Path(__file__).parents[2] / "docs" / "channels.md").read_text()
    figures = re.search(r"takes ([\d,]+) gas alone, and ([\d,]+) in a batch of ten", told)
    assert figures is not None, (alone, ten // 10, each)
    for figure, measured in zip(figures.groups(), (alone, ten // 10), strict=True):
        # A second recovery, for every other signature, takes 3,300 more.
        assert abs(int(figure.replace(",", "")) - measured) * 20 <= measured, (alone, ten // 10)


# ── who may sign ─────────────────────────────────────────────────────────────────────────────────


def malleable(signed: SignedSubRAV) -> SignedSubRAV:
    """The same signature, written the other way."""
    r, s = signed.signature[:32], int.from_bytes(signed.signature[32:], "big")
    return SignedSubRAV(signed.sub_rav, r + (ORDER - s).to_bytes(32, "big"))


def test_a_signature_that_is_not_the_keys_own_low_form_of_this_voucher_is_refused(
    pair: Pair,
) -> None:
    pair.open(1_000)
    good = pair.voucher(100)
    bad = [
        malleable(good),
        pair.voucher(100, key=signer(pair.contract)),
        pair.voucher(100, vm_id_fragment="phone"),
        SignedSubRAV(pair.voucher(200).sub_rav, good.signature),
        SignedSubRAV(pair.voucher(100, nonce=2).sub_rav, good.signature),
        SignedSubRAV(good.sub_rav, bytes(64)),
        SignedSubRAV(good.sub_rav, b"\xff" * 64),
    ]
    for one in bad:
        assert BAD_SIGNATURE in pair.refused_claim(one)
    pair.claim(good)
    assert pair.claimed() == 100


def test_a_voucher_for_another_contract_chain_or_channel_is_refused(pair: Pair) -> None:
    pair.open(1_000)
    elsewhere = pair.anvil.deploy(SOURCE)
    copy = Pair(pair.anvil, elsewhere, pair.payer, pair.payee)
    copy.key = pair.key
    copy.does(pair.payer, "open", pair.payee, NO_TOKEN, 500, FRAGMENT, key_of(pair.key), value=500)
    good = pair.voucher(100)
    taken = SignedSubRAV(copy.voucher(100).sub_rav, good.signature)
    assert BAD_SIGNATURE in copy.refused_claim(taken)
    assert BAD_SIGNATURE in pair.refused_claim(pair.voucher(100, chain_id=CHAIN_ID + 1))
    # Of a channel between others, by the same key: the id is signed too.
    other = Pair(pair.anvil, pair.contract, party(pair.anvil), pair.payee)
    other.open(1_000, key=pair.key)
    moved = SignedSubRAV(other.voucher(100).sub_rav, good.signature)
    assert BAD_SIGNATURE in pair.refused_claim(moved)


def test_the_same_contract_on_another_chain_refuses_a_voucher_of_this_one_anvil(
    pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pair.open(1_000)
    good = pair.voucher(100)
    other_chain = Anvil(tmp_path_factory.mktemp("another-chain"), chain_id=CHAIN_ID + 1)
    other_chain.start()
    try:
        for one in (pair.payer, pair.payee):
            other_chain.rpc("anvil_impersonateAccount", one)
            other_chain.rpc("anvil_setBalance", one, hex(10**20))
        there = Pair(other_chain, deployed(other_chain), pair.payer, pair.payee)
        there.open(1_000, key=pair.key)
        assert there.contract.address == pair.contract.address
        assert there.channel_id != pair.channel_id
        replayed = SignedSubRAV(there.voucher(100).sub_rav, good.signature)
        assert BAD_SIGNATURE in there.refused_claim(replayed)
    finally:
        other_chain.stop()


def test_a_key_keeps_its_place_until_the_channel_is_closed(pair: Pair) -> None:
    pair.open(1_000)
    channel, other = bytes.fromhex(pair.channel_id[2:]), signer(pair.contract)
    args = (channel, FRAGMENT, key_of(other))
    assert BAD_KEY in pair.refused(pair.payer, "authorize", *args)
    assert BAD_KEY in pair.refused(pair.payer, "authorize", channel, "phone", NO_TOKEN)
    for fragment in ("", "x" * 256):
        named = (channel, fragment, key_of(other))
        assert BAD_FRAGMENT in pair.refused(pair.payer, "authorize", *named)
    assert NOT_THE_PAYER in pair.refused(pair.payee, "authorize", channel, "phone", key_of(other))
    pair.does(pair.payer, "authorize", channel, "phone", key_of(other))
    pair.claim(pair.voucher(5, key=other, vm_id_fragment="phone"))
    pair.close(pair.payee)
    pair.open(1_000, key=other)
    assert BAD_SIGNATURE in pair.refused_claim(pair.voucher(5))
    pair.claim(pair.voucher(5, key=other))


# ── closing ──────────────────────────────────────────────────────────────────────────────────────


def test_a_stale_close_is_answered_within_the_challenge_period(pair: Pair) -> None:
    pair.open(1_000)
    pair.claim(pair.voucher(100))
    pair.request_close()
    assert pair.status == CLOSING
    pair.wait(DAY_S - 60)
    assert NOT_NOW in pair.refused_close(pair.payer, pair.voucher(100))
    stranger, before = party(pair.anvil), pair.held(pair.payee)
    pair.claim(pair.voucher(900, nonce=50), sender=stranger)
    pair.wait(61)
    pair.close(stranger, pair.voucher(100))
    assert pair.held(pair.payee) - before == 800


def test_only_the_payee_closes_before_the_challenge_is_over(pair: Pair) -> None:
    pair.open(1_000)
    assert NOT_NOW in pair.refused_close(pair.payer)
    assert NOT_NOW in pair.refused_close(party(pair.anvil))
    before = pair.held(pair.payer)
    pair.close(pair.payee, pair.voucher(300))
    assert pair.held(pair.payer) - before == 700
    for sender in (pair.payer, pair.payee):
        assert NOT_NOW in pair.refused_close(sender)


def test_a_closing_takes_no_money_no_key_and_no_second_beginning(pair: Pair) -> None:
    pair.open(1_000)
    channel = bytes.fromhex(pair.channel_id[2:])
    assert NOT_THE_PAYER in pair.refused(pair.payee, "requestClose", channel)
    pair.request_close()
    assert NOT_NOW in pair.refused(pair.payer, "requestClose", channel)
    assert NOT_NOW in pair.refused(pair.payer, "topUp", channel, 1, value=1)
    again = (pair.payee, NO_TOKEN, 1, FRAGMENT, key_of(pair.key))
    assert NOT_NOW in pair.refused(pair.payer, "open", *again, value=1)
    other = key_of(signer(pair.contract))
    assert NOT_NOW in pair.refused(pair.payer, "authorize", channel, "phone", other)


def test_a_voucher_of_an_epoch_that_ended_is_worth_nothing(pair: Pair) -> None:
    pair.open(1_000)
    old = pair.voucher(600)
    pair.close(pair.payee)
    pair.open(1_000)
    before = pair.held(pair.payee)
    stranger = party(pair.anvil)
    pair.claim(old, pair.voucher(7), sender=stranger)
    assert pair.held(pair.payee) - before == 7
    assert BAD_SIGNATURE in pair.refused_claim(
        SignedSubRAV(pair.voucher(600).sub_rav, old.signature)
    )


def test_a_voucher_of_another_channel_closes_nothing(pair: Pair) -> None:
    other = Pair(pair.anvil, pair.contract, party(pair.anvil), pair.payee)
    pair.open(1_000)
    other.open(1_000)
    assert BAD_VOUCHER in pair.refused_close(pair.payee, other.voucher(1))


# ── tokens that are not as they should be ────────────────────────────────────────────────────────


def test_of_a_token_that_takes_a_fee_what_arrived_is_the_collateral(pair: Pair) -> None:
    pair = with_token(pair, "FeeToken")
    pair.open(10_000)
    assert pair.collateral == 9_900 == pair.held(pair.contract.address)
    pair.claim(pair.voucher(10_000))
    assert pair.claimed() == 9_900
    assert pair.held(pair.payee) == 9_900 - 99
    assert pair.held(pair.contract.address) == 0


def test_a_hostile_token_gets_nothing_by_calling_back(pair: Pair) -> None:
    victim = with_token(pair, "HostileToken")
    assert victim.token is not None
    thief = Pair(pair.anvil, pair.contract, party(pair.anvil), party(pair.anvil), victim.token)
    victim.open(10_000)
    thief.open(1_000)
    voucher = thief.voucher(400)
    channel = bytes.fromhex(thief.channel_id[2:])
    within = [
        ("claim", ([packed(voucher)],)),
        ("close", (channel, [packed(voucher)])),
        ("topUp", (channel, 1)),
        ("open", (thief.payee, victim.token.address, 1, FRAGMENT, key_of(thief.key))),
        ("requestClose", (channel,)),
    ]
    for count, (name, arguments) in enumerate(within, start=1):
        data = pair.contract.data(name, *arguments)
        plan = victim.token.send("plan", pair.contract.address, bytes.fromhex(data[2:]))
        pair.anvil.mined(plan)
        thief.claim(thief.voucher(10 * count, nonce=count), sender=thief.payee)
        assert victim.token.call("calls") == count
        assert victim.token.call("came") is False
    assert thief.held(thief.payee) == 10 * len(within)
    assert victim.held(pair.contract.address) == 11_000 - 10 * len(within)
    assert (victim.collateral, thief.collateral) == (10_000, 1_000 - 10 * len(within))


def test_a_payee_that_takes_no_ether_keeps_nobodys_money_from_its_payer(pair: Pair) -> None:
    pair.open(1_000)
    pair.anvil.rpc("anvil_setCode", pair.payee, "0x60006000fd")
    stranger = party(pair.anvil)
    claim = [packed(pair.voucher(10))]
    assert TRANSFER_FAILED in pair.refused(stranger, "claim", claim)
    pair.request_close()
    pair.wait(DAY_S)
    before = pair.held(pair.payer)
    pair.close(stranger)
    assert pair.held(pair.payer) - before == 1_000


def test_a_channel_is_opened_with_money_between_two_parties_only(pair: Pair) -> None:
    key = key_of(pair.key)
    for payee in (NO_TOKEN, pair.payer, pair.contract.address):
        args = (payee, NO_TOKEN, 1, FRAGMENT, key)
        assert BAD_PARTY in pair.refused(pair.payer, "open", *args, value=1)
    named = (pair.payee, NO_TOKEN)
    assert NOTHING_ARRIVED in pair.refused(pair.payer, "open", *named, 0, FRAGMENT, key)
    assert WRONG_VALUE in pair.refused(pair.payer, "open", *named, 2, FRAGMENT, key, value=1)
    token = with_token(pair, "PlainToken")
    token.fund(10)
    args = (pair.payee, token.token_address, 10, FRAGMENT, key)
    assert WRONG_VALUE in pair.refused(pair.payer, "open", *args, value=1)
    args = (pair.payee, party(pair.anvil), 10, FRAGMENT, key)  # a token that is no contract
    assert TRANSFER_FAILED in pair.refused(pair.payer, "open", *args)


# ── reorganisations ──────────────────────────────────────────────────────────────────────────────


def test_a_reorganisation_takes_back_a_claim_and_the_same_voucher_pays_again(pair: Pair) -> None:
    pair.open(1_000)
    voucher = pair.voucher(250)
    stranger, before = party(pair.anvil), pair.held(pair.payee)
    pair.claim(voucher, sender=stranger)
    pair.anvil.reorganise(1)
    assert (pair.claimed(), pair.held(pair.payee) - before) == (0, 0)
    pair.claim(voucher, sender=stranger)
    assert (pair.claimed(), pair.held(pair.payee) - before) == (250, 250)
