"""Payment channels that a contract on an EVM chain backs, from the settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from farebox.channels.claims import ClaimPolicy, ClaimScheduler
from farebox.channels.payee import CreditPolicy, PaymentChannelPayeeClient
from farebox.errors import InvalidSettings
from farebox.money import BTC, Rounding
from farebox.payments.exchange import Exchange
from farebox.rails.evm.channels import (
    CHALLENGE_S,
    ETHER,
    BatchPolicy,
    ChannelReader,
    ChannelTerms,
    EvmPayee,
)
from farebox.rails.evm.rpc import Rpc
from farebox.rails.evm.sending import Sending
from farebox.settings import ChannelsSettings

#: While no rate is known, nobody is served.
NOBODY = CreditPolicy(exposure_max=0, request_max=0, backing_min=2**255)
#: How often channels that owe anything are looked at, for payers that close.
WATCH_S = CHALLENGE_S // 24


@dataclass(frozen=True, slots=True)
class BackingChain:
    """A chain that backs channels: how it is asked, who sends there, and `tokens` by asset code,
    where the coin's is empty. What is in a block counts after `confirmations`."""

    rpc: Rpc
    sending: Sending
    tokens: dict[str, str]
    confirmations: int


def reader_of(found: ChannelsSettings, chain: BackingChain) -> ChannelReader:
    """What asks the contract. Raises InvalidSettings for an asset that the chain does not take."""
    token = chain.tokens.get(found.asset)
    if token is None:
        raise InvalidSettings("channels.asset", found.asset, f"one of {', '.join(chain.tokens)}")
    terms = ChannelTerms(
        chain_id=chain.sending.terms.chain_id,
        assets={found.asset: token.lower() or ETHER},
        confirmations=chain.confirmations,
    )
    return ChannelReader(chain.rpc, terms)


def payee_of(found: ChannelsSettings, chain: BackingChain, exchange: Exchange) -> EvmPayee:
    """The house as a payee on the chain. Raises InvalidSettings."""
    policy = BatchPolicy(gas_percent=found.claim_gas_percent)
    return EvmPayee(reader_of(found, chain), chain.sending, exchange, policy)


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
