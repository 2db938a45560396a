"""Channels on EVM chains: names, bytes and limits that need no chain."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest

from farebox.bootstrap.evm_channels import NOBODY, SatLimits, payee_of, terms_of
from farebox.channels.claims import ClaimPolicy
from farebox.channels.payee import CreditPolicy
from farebox.errors import InvalidCredential, InvalidSettings, RailUnavailable
from farebox.money import Asset
from farebox.payments.exchange import Exchange
from farebox.payments.rail import Limits
from farebox.rails.evm.arrivals import FINALIZED, Depth
from farebox.rails.evm.channels import ETHER, ChannelTerms, account_did, did_address
from farebox.rails.evm.channels.contract import read_channel, read_sub_channel
from farebox.rails.evm.config import EvmAsset, EvmConfig
from farebox.settings import ChannelsSettings
from farebox.settings.fields import read_section
from farebox.settings.values import Where

ADDRESS = "0x" + "ab" * 20
TOKEN = "0x" + "Cd" * 20


@pytest.mark.parametrize(
    "did",
    [
        "did:pkh:eip155:1:0x" + "ab" * 20,
        "did:pkh:eip155:137:0x" + "ab" * 19,
        "did:pkh:eip155:137:0x" + "ab" * 20 + "#key",
        "did:pkh:eip155:137:" + "ab" * 20,
        "did:farebox:house",
        "did:pkh:eip155:" + "9" * 5_000 + ":0x" + "ab" * 20,
        "",
    ],
)
def test_a_did_that_names_no_account_of_the_chain_is_refused(did: str) -> None:
    with pytest.raises(InvalidCredential):
        did_address(did, 137)


def test_a_did_has_one_form_whatever_the_case_of_its_address() -> None:
    did = account_did(137, ADDRESS.upper().replace("0X", "0x"))
    assert did == f"did:pkh:eip155:137:{ADDRESS}"
    assert did_address(did, 137) == ADDRESS


def test_a_channel_is_one_contracts_between_two_in_one_asset() -> None:
    one = ChannelTerms(chain_id=137, assets={"POL": ETHER, "USDC": TOKEN.lower()})
    other = ChannelTerms(chain_id=1, assets=one.assets)
    payer, payee = account_did(137, ADDRESS), account_did(137, TOKEN)
    ids = {
        one.channel_id(payer, payee, "POL"),
        one.channel_id(payer, payee, "USDC"),
        one.channel_id(payee, payer, "POL"),
        other.channel_id(account_did(1, ADDRESS), account_did(1, TOKEN), "POL"),
    }
    assert len(ids) == 4
    with pytest.raises(InvalidCredential):
        one.channel_id(payer, payee, "DAI")


@pytest.mark.parametrize("raw", [b"", b"\x00" * 31, b"\xff" * 32 * 7])
def test_what_is_no_answer_of_the_contract_is_not_read_as_one(raw: bytes) -> None:
    with pytest.raises(RailUnavailable):
        read_channel(raw)
    with pytest.raises(RailUnavailable):
        read_sub_channel(raw[:100])


def test_what_was_never_opened_is_nothing() -> None:
    assert read_channel(bytes(32 * 7)) is None
    assert read_sub_channel(bytes(32 * 4)) is None


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


def asset(code: str, *depths: Depth, keeps_part: bool = False) -> EvmAsset:
    return EvmAsset(
        asset=Asset(code, 6),
        token=TOKEN,
        deposits=Limits(1, 2),
        payouts=None if keeps_part else Limits(1, 2),
        depths=depths,
        keeps_part=keeps_part,
    )


def channels(**told: object) -> ChannelsSettings:
    return read_section(ChannelsSettings, {"chain": "evm", **told}, Where("", {}, Path()))


def test_a_claim_counts_as_deep_as_the_greatest_arrival() -> None:
    config = EvmConfig(
        name="chain",
        chain_id=5,
        assets=(
            asset("USDC", Depth(0, 3), Depth(100, 20), Depth(1_000, FINALIZED)),
            asset("FEE", Depth(0, 3), keeps_part=True),
        ),
    )
    terms = terms_of(channels(asset="USDC"), config)
    assert (terms.confirmations, terms.assets) == (20, {"USDC": TOKEN.lower()})
    for code in ("FEE", "DAI"):
        with pytest.raises(InvalidSettings, match="USDC"):
            terms_of(channels(asset=code), config)


@pytest.mark.parametrize("told", [{}, {"evm": "base"}])
def test_channels_on_a_chain_that_is_not_in_the_settings_are_refused(
    told: dict[str, object],
) -> None:
    with pytest.raises(InvalidSettings, match=r"channels\.evm"):
        payee_of(channels(**told), [], Exchange())


@dataclass
class Rates:
    known: dict[str, Fraction] = field(default_factory=dict)

    def msat_per_unit(self, asset: str) -> Fraction | None:
        return self.known.get(asset)


@dataclass
class Holder:
    """What limits are kept at."""

    policy: object = None


def test_limits_in_sat_follow_the_rate_and_without_one_nobody_is_trusted() -> None:
    rates, payee, claims = Rates(), Holder(), Holder()
    credit = CreditPolicy(exposure_max=1_000_000, request_max=10_000, backing_min=1_000)
    claiming = ClaimPolicy(min_claim_amount=1_000, threshold=50_000)
    limits = SatLimits(credit, claiming, Exchange(rates), "USDC")

    def keep() -> None:
        limits.keep(payee, claims)  # type: ignore[arg-type]

    keep()
    assert (payee.policy, claims.policy) == (NOBODY, None)
    rates.known["USDC"] = Fraction(3)
    keep()
    assert payee.policy == CreditPolicy(exposure_max=333_334, request_max=3_334, backing_min=334)
    assert isinstance(claims.policy, ClaimPolicy)
    assert (claims.policy.min_claim_amount, claims.policy.threshold) == (334, 16_667)
    rates.known.clear()
    keep()
    assert payee.policy is NOBODY
    assert claims.policy.threshold == 16_667
