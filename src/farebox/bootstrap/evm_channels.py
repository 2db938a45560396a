"""Payment channels that a contract on an EVM chain backs, from the settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from farebox.bootstrap.evm import config_of, rpc_of
from farebox.channels.claims import ClaimPolicy, ClaimScheduler
from farebox.channels.payee import CreditPolicy, PaymentChannelPayeeClient
from farebox.clock import SystemClock
from farebox.errors import InvalidSettings
from farebox.money import BTC, Rounding
from farebox.payments.exchange import Exchange
from farebox.payments.rail import DepositMethod
from farebox.rails.evm.arrivals import FINALIZED
from farebox.rails.evm.channels import (
    CHALLENGE_S,
    ETHER,
    BatchPolicy,
    ChannelReader,
    ChannelTerms,
    EvmPayee,
)
from farebox.rails.evm.config import EvmConfig
from farebox.rails.evm.method import EvmMethod
from farebox.rails.evm.rpc import open_rpc_session
from farebox.settings import ChannelsSettings, Settings

#: While no rate is known, nobody is served.
NOBODY = CreditPolicy(exposure_max=0, request_max=0, backing_min=2**255)
#: How often channels that owe anything are looked at, for payers that close.
WATCH_S = CHALLENGE_S // 24
#: As deep as blocks are that a chain calls final, where an operator asks for no number.
_FINALIZED_BLOCKS = 96


def payee_of(
    found: ChannelsSettings, methods: Iterable[DepositMethod], exchange: Exchange
) -> EvmPayee:
    """The house as a payee on the chain that backs its channels. Raises InvalidSettings."""
    chains = {one.config.name: one for one in methods if isinstance(one, EvmMethod)}
    chain = chains.get(found.evm or "")
    if chain is None:
        allowed = f"one of {', '.join(chains)}" if chains else "an [[evm]] chain first"
        raise InvalidSettings("channels.evm", found.evm or "nothing", allowed)
    terms = terms_of(found, chain.config)
    policy = BatchPolicy(gas_percent=found.claim_gas_percent)
    return EvmPayee(ChannelReader(chain.rpc, terms), chain.sending, exchange, policy)


def terms_of(found: ChannelsSettings, chain: EvmConfig) -> ChannelTerms:
    """The contract on a chain, for the asset of the settings. Raises InvalidSettings."""
    whole = [one for one in chain.assets if not one.keeps_part]
    asset = next((one for one in whole if one.asset.code == found.asset), None)
    if asset is None:
        allowed = f"one of {', '.join(one.asset.code for one in whole)}"
        raise InvalidSettings("channels.asset", found.asset, allowed)
    # An arrival of any amount is deep enough here: whatever is claimed counts at one depth.
    depths = [one.confirmations for one in asset.depths if one.confirmations != FINALIZED]
    return ChannelTerms(
        chain_id=chain.chain_id,
        assets={found.asset: asset.token.lower() or ETHER},
        confirmations=max(depths, default=_FINALIZED_BLOCKS),
    )


async def examine_contract(found: Settings) -> str:
    """What backs channels, as the chain has it. Raises InvalidSettings, RailError."""
    told = found.channels
    chain = next((one for one in found.evm if one.name == told.evm), None)
    if chain is None:
        raise InvalidSettings("channels.evm", told.evm or "nothing", "the name of an [[evm]] chain")
    terms = terms_of(told, config_of(chain))
    async with open_rpc_session() as session:
        await ChannelReader(rpc_of(chain, session, SystemClock()), terms).check()
    return f"in {told.asset} on {told.evm}, by the contract at {terms.contract}"


class SatLimits:
    """Keeps limits that were given in sat at what they are worth in the channels' asset."""

    def __init__(
        self, credit: CreditPolicy, claiming: ClaimPolicy, exchange: Exchange, asset: str
    ) -> None:
        self._credit = credit
        self._claiming = claiming
        self._exchange = exchange
        self._asset = asset

    def keep(self, payee: PaymentChannelPayeeClient, claims: ClaimScheduler) -> None:
        """Put them at the rate of now. Without one nobody is served; what is signed is claimed as
        at the rate before."""
        credit, claiming = self._credit, self._claiming
        least = self._worth(claiming.min_claim_amount)
        at, request = self._worth(claiming.threshold), self._worth(credit.request_max)
        exposure = self._worth(credit.exposure_max)
        if least is None or at is None or request is None or exposure is None:
            payee.policy = NOBODY
            return
        payee.policy = CreditPolicy(exposure_max=exposure, request_max=request, backing_min=least)
        claims.policy = replace(claiming, min_claim_amount=least, threshold=at)

    def _worth(self, amount_msat: int) -> int | None:
        return self._exchange.worth(amount_msat, BTC.code, self._asset, Rounding.UP)
