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
def both(anvil: Anvil, contract: Contract) -> Pair:
    """Backed by ether, and not open yet."""
    return Pair(anvil, contract, party(anvil), party(anvil))


def with_token(both: Pair, name: str) -> Pair:
    """The same two, backed by a new token."""
    token = both.anvil.deploy(CONTRACTS / f"{name}.sol")
    return Pair(both.anvil, both.contract, both.payer, both.payee, token)


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
    both: Pair,
) -> None:
    assert ABIS.read_text() == interfaces()
    code = both.anvil.rpc("eth_getCode", both.contract.address, "latest")
    assert code == artifact(SOURCE.stem).runtime


# ── money ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", ["", "PlainToken", "TetherLike"])
def test_a_channel_pays_its_newest_vouchers_and_gives_back_the_rest(both: Pair, token: str) -> None:
    both = with_token(both, token) if token else both
    before, others = both.held(both.payee), both.held(both.contract.address)
    both.open(1_000)
    assert (both.status, both.collateral) == (OPEN, 1_000)
    stranger = party(both.anvil)
    both.claim(both.voucher(100), sender=stranger)
    both.claim(both.voucher(350, nonce=9), sender=stranger)
    assert both.held(both.payee) - before == both.claimed() == 350
    assert both.collateral == 650
    both.request_close()
    both.wait(DAY_S)
    payer_before = both.held(both.payer)
    both.close(stranger, both.voucher(400, nonce=10))
    assert both.held(both.payee) - before == 400
    assert both.held(both.payer) - payer_before == 600
    assert (both.status, both.collateral) == (CLOSED, 0)
    assert both.held(both.contract.address) == others


def test_many_vouchers_of_several_keys_and_channels_are_paid_in_one_transaction(
    both: Pair,
) -> None:
    both = with_token(both, "PlainToken")
    other = Pair(both.anvil, both.contract, party(both.anvil), both.payee, both.token)
    third = Pair(both.anvil, both.contract, both.payer, party(both.anvil))
    phone = signer(both.contract)
    for one in (both, other, third):
        one.open(1_000)
    both.open(1_000, "phone", phone)
    vouchers = (
        both.voucher(10),
        both.voucher(20, key=phone, vm_id_fragment="phone"),
        third.voucher(40),
        other.voucher(80),
    )
    both.claim(*vouchers, sender=party(both.anvil))
    assert (both.claimed(), both.claimed("phone"), other.claimed(), third.claimed()) == (
        (10, 20, 80, 40)
    )
    assert both.held(both.payee) == 110


def test_the_same_voucher_and_an_older_one_move_nothing_and_harm_no_other(both: Pair) -> None:
    both.open(1_000)
    newest, older = both.voucher(100, nonce=2), both.voucher(50)
    both.claim(newest)
    before = both.held(both.payee)
    stranger = party(both.anvil)
    both.claim(newest, older, both.voucher(120, nonce=3), newest, sender=stranger)
    assert both.held(both.payee) - before == 20


def test_a_voucher_above_the_collateral_is_paid_in_part_and_the_rest_after_a_top_up(
    both: Pair,
) -> None:
    both.open(100)
    stranger, before = party(both.anvil), both.held(both.payee)
    both.claim(both.voucher(250), sender=stranger)
    assert (both.claimed(), both.collateral) == (100, 0)
    both.claim(both.voucher(2**255, nonce=2), sender=stranger)
    assert (both.claimed(), both.held(both.payee) - before) == (100, 100)
    both.does(stranger, "topUp", bytes.fromhex(both.channel_id[2:]), 500, value=500)
    both.claim(both.voucher(250), sender=stranger)
    assert (both.claimed(), both.collateral) == (250, 350)


def test_what_one_channel_owes_is_never_paid_by_another(both: Pair) -> None:
    other = Pair(both.anvil, both.contract, party(both.anvil), party(both.anvil))
    both.open(100)
    other.open(10_000)
    both.claim(both.voucher(5_000))
    assert (both.claimed(), other.collateral) == (100, 10_000)


def test_a_claim_takes_the_gas_that_the_page_says(both: Pair) -> None:
    payee, token = both.payee, both.anvil.deploy(CONTRACTS / "PlainToken.sol")
    pairs = [Pair(both.anvil, both.contract, party(both.anvil), payee, token) for _ in range(11)]
    for one in pairs:
        one.open(1_000)

    def gas(*channels: Pair, amount: int) -> int:
        vouchers = [one.voucher(amount, nonce=amount) for one in channels]
        return int(both.claim(*vouchers)["gasUsed"], 16)

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
    both: Pair,
) -> None:
    both.open(1_000)
    good = both.voucher(100)
    bad = [
        malleable(good),
        both.voucher(100, key=signer(both.contract)),
        both.voucher(100, vm_id_fragment="phone"),
        SignedSubRAV(both.voucher(200).sub_rav, good.signature),
        SignedSubRAV(both.voucher(100, nonce=2).sub_rav, good.signature),
        SignedSubRAV(good.sub_rav, bytes(64)),
        SignedSubRAV(good.sub_rav, b"\xff" * 64),
    ]
    for one in bad:
        assert BAD_SIGNATURE in both.refused_claim(one)
    both.claim(good)
    assert both.claimed() == 100


def test_a_voucher_for_another_contract_chain_or_channel_is_refused(both: Pair) -> None:
    both.open(1_000)
    elsewhere = both.anvil.deploy(SOURCE)
    copy = Pair(both.anvil, elsewhere, both.payer, both.payee)
    copy.key = both.key
    copy.does(both.payer, "open", both.payee, NO_TOKEN, 500, FRAGMENT, key_of(both.key), value=500)
    good = both.voucher(100)
    taken = SignedSubRAV(copy.voucher(100).sub_rav, good.signature)
    assert BAD_SIGNATURE in copy.refused_claim(taken)
    assert BAD_SIGNATURE in both.refused_claim(both.voucher(100, chain_id=CHAIN_ID + 1))
    # Of a channel between others, by the same key: the id is signed too.
    other = Pair(both.anvil, both.contract, party(both.anvil), both.payee)
    other.open(1_000, key=both.key)
    moved = SignedSubRAV(other.voucher(100).sub_rav, good.signature)
    assert BAD_SIGNATURE in both.refused_claim(moved)


def test_the_same_contract_on_another_chain_refuses_a_voucher_of_this_one_anvil(
    both: Pair, tmp_path_factory: pytest.TempPathFactory
) -> None:
    both.open(1_000)
    good = both.voucher(100)
    other_chain = Anvil(tmp_path_factory.mktemp("another-chain"), chain_id=CHAIN_ID + 1)
    other_chain.start()
    try:
        for one in (both.payer, both.payee):
            other_chain.rpc("anvil_impersonateAccount", one)
            other_chain.rpc("anvil_setBalance", one, hex(10**20))
        there = Pair(other_chain, deployed(other_chain), both.payer, both.payee)
        there.open(1_000, key=both.key)
        assert there.contract.address == both.contract.address
        assert there.channel_id != both.channel_id
        replayed = SignedSubRAV(there.voucher(100).sub_rav, good.signature)
        assert BAD_SIGNATURE in there.refused_claim(replayed)
    finally:
        other_chain.stop()


def test_a_key_keeps_its_place_until_the_channel_is_closed(both: Pair) -> None:
    both.open(1_000)
    channel, other = bytes.fromhex(both.channel_id[2:]), signer(both.contract)
    args = (channel, FRAGMENT, key_of(other))
    assert BAD_KEY in both.refused(both.payer, "authorize", *args)
    assert BAD_KEY in both.refused(both.payer, "authorize", channel, "phone", NO_TOKEN)
    for fragment in ("", "x" * 256):
        named = (channel, fragment, key_of(other))
        assert BAD_FRAGMENT in both.refused(both.payer, "authorize", *named)
    assert NOT_THE_PAYER in both.refused(both.payee, "authorize", channel, "phone", key_of(other))
    both.does(both.payer, "authorize", channel, "phone", key_of(other))
    both.claim(both.voucher(5, key=other, vm_id_fragment="phone"))
    both.close(both.payee)
    both.open(1_000, key=other)
    assert BAD_SIGNATURE in both.refused_claim(both.voucher(5))
    both.claim(both.voucher(5, key=other))


# ── closing ──────────────────────────────────────────────────────────────────────────────────────


def test_a_stale_close_is_answered_within_the_challenge_period(both: Pair) -> None:
    both.open(1_000)
    both.claim(both.voucher(100))
    both.request_close()
    assert both.status == CLOSING
    both.wait(DAY_S - 3_600)
    assert NOT_NOW in both.refused_close(both.payer, both.voucher(100))
    stranger, before = party(both.anvil), both.held(both.payee)
    both.claim(both.voucher(900, nonce=50), sender=stranger)
    both.wait(3_601)
    both.close(stranger, both.voucher(100))
    assert both.held(both.payee) - before == 800


def test_only_the_payee_closes_before_the_challenge_is_over(both: Pair) -> None:
    both.open(1_000)
    assert NOT_NOW in both.refused_close(both.payer)
    assert NOT_NOW in both.refused_close(party(both.anvil))
    before = both.held(both.payer)
    both.close(both.payee, both.voucher(300))
    assert both.held(both.payer) - before == 700
    for sender in (both.payer, both.payee):
        assert NOT_NOW in both.refused_close(sender)


def test_a_closing_takes_no_money_no_key_and_no_second_beginning(both: Pair) -> None:
    both.open(1_000)
    channel = bytes.fromhex(both.channel_id[2:])
    assert NOT_THE_PAYER in both.refused(both.payee, "requestClose", channel)
    both.request_close()
    assert NOT_NOW in both.refused(both.payer, "requestClose", channel)
    assert NOT_NOW in both.refused(both.payer, "topUp", channel, 1, value=1)
    again = (both.payee, NO_TOKEN, 1, FRAGMENT, key_of(both.key))
    assert NOT_NOW in both.refused(both.payer, "open", *again, value=1)
    other = key_of(signer(both.contract))
    assert NOT_NOW in both.refused(both.payer, "authorize", channel, "phone", other)


def test_a_voucher_of_an_epoch_that_ended_is_worth_nothing(both: Pair) -> None:
    both.open(1_000)
    old = both.voucher(600)
    both.close(both.payee)
    both.open(1_000)
    before = both.held(both.payee)
    stranger = party(both.anvil)
    both.claim(old, both.voucher(7), sender=stranger)
    assert both.held(both.payee) - before == 7
    assert BAD_SIGNATURE in both.refused_claim(
        SignedSubRAV(both.voucher(600).sub_rav, old.signature)
    )


def test_a_voucher_of_another_channel_closes_nothing(both: Pair) -> None:
    other = Pair(both.anvil, both.contract, party(both.anvil), both.payee)
    both.open(1_000)
    other.open(1_000)
    assert BAD_VOUCHER in both.refused_close(both.payee, other.voucher(1))


# ── tokens that are not as they should be ────────────────────────────────────────────────────────


def test_of_a_token_that_takes_a_fee_what_arrived_is_the_collateral(both: Pair) -> None:
    both = with_token(both, "FeeToken")
    both.open(10_000)
    assert both.collateral == 9_900 == both.held(both.contract.address)
    both.claim(both.voucher(10_000))
    assert both.claimed() == 9_900
    assert both.held(both.payee) == 9_900 - 99
    assert both.held(both.contract.address) == 0


def test_a_hostile_token_gets_nothing_by_calling_back(both: Pair) -> None:
    victim = with_token(both, "HostileToken")
    assert victim.token is not None
    thief = Pair(both.anvil, both.contract, party(both.anvil), party(both.anvil), victim.token)
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
        data = both.contract.data(name, *arguments)
        plan = victim.token.send("plan", both.contract.address, bytes.fromhex(data[2:]))
        both.anvil.mined(plan)
        thief.claim(thief.voucher(10 * count, nonce=count), sender=thief.payee)
        assert victim.token.call("calls") == count
        assert victim.token.call("came") is False
    assert thief.held(thief.payee) == 10 * len(within)
    assert victim.held(both.contract.address) == 11_000 - 10 * len(within)
    assert (victim.collateral, thief.collateral) == (10_000, 1_000 - 10 * len(within))


def test_a_payee_that_takes_no_ether_keeps_nobodys_money_from_its_payer(both: Pair) -> None:
    both.open(1_000)
    both.anvil.rpc("anvil_setCode", both.payee, "0x60006000fd")
    stranger = party(both.anvil)
    claim = [packed(both.voucher(10))]
    assert TRANSFER_FAILED in both.refused(stranger, "claim", claim)
    both.request_close()
    both.wait(DAY_S)
    before = both.held(both.payer)
    both.close(stranger)
    assert both.held(both.payer) - before == 1_000


def test_a_channel_is_opened_with_money_between_two_parties_only(both: Pair) -> None:
    key = key_of(both.key)
    for payee in (NO_TOKEN, both.payer, both.contract.address):
        args = (payee, NO_TOKEN, 1, FRAGMENT, key)
        assert BAD_PARTY in both.refused(both.payer, "open", *args, value=1)
    named = (both.payee, NO_TOKEN)
    assert NOTHING_ARRIVED in both.refused(both.payer, "open", *named, 0, FRAGMENT, key)
    assert WRONG_VALUE in both.refused(both.payer, "open", *named, 2, FRAGMENT, key, value=1)
    token = with_token(both, "PlainToken")
    token.fund(10)
    args = (both.payee, token.token_address, 10, FRAGMENT, key)
    assert WRONG_VALUE in both.refused(both.payer, "open", *args, value=1)
    args = (both.payee, party(both.anvil), 10, FRAGMENT, key)  # a token that is no contract
    assert TRANSFER_FAILED in both.refused(both.payer, "open", *args)


# ── reorganisations ──────────────────────────────────────────────────────────────────────────────


def test_a_reorganisation_takes_back_a_claim_and_the_same_voucher_pays_again(both: Pair) -> None:
    both.open(1_000)
    voucher = both.voucher(250)
    stranger, before = party(both.anvil), both.held(both.payee)
    both.claim(voucher, sender=stranger)
    both.anvil.reorganise(1)
    assert (both.claimed(), both.held(both.payee) - before) == (0, 0)
    both.claim(voucher, sender=stranger)
    assert (both.claimed(), both.held(both.payee) - before) == (250, 250)
