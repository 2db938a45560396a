"""Every mint that we hold money at, each behind a port and a circuit breaker of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress

import aiohttp

from farebox.clock import NS_PER_S, Clock
from farebox.ecash.receive import output_keyset
from farebox.errors import RailRejected
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.rails.cashu.config import CashuConfig, MintTerms, custody_account, unswapped_account
from farebox.rails.cashu.http_mint import HttpMint
from farebox.rails.web.breaker import BreakerState
from farebox.wire.cashu.model import Keyset, Token
from farebox.wire.cashu.token import UnknownKeyset, resolve_keyset_ids

#: Active keysets of one unit that we look at; a mint has one or two.
_ACTIVE_MAX = 8
#: Ports to mints that nobody listed, kept for their keysets' sake.
_FOREIGN_MAX = 64
#: Spending conditions, P2PK and DLEQ.
_LOCK_NUTS = frozenset({10, 11, 12})
_CHANGE_NUT = 8
_INFO_AGE_MAX_S = 3_600


class MintPlace:
    """One mint: its terms and the port to it. Nothing here is shared with another mint."""

    def __init__(self, terms: MintTerms, mint: HttpMint, clock: Clock) -> None:
        self.terms = terms
        self.mint = mint
        self._clock = clock
        self._nuts: tuple[frozenset[int], int] = (frozenset(), -1)

    @property
    def url(self) -> str:
        """The mint's URL, normalised."""
        return self.terms.url

    @property
    def is_left_alone(self) -> bool:
        """Whether the breaker is open: a call would fail at once."""
        return self.mint.breaker.state is BreakerState.OPEN

    async def keysets(self, unit: str, wanted: Collection[str] = ()) -> dict[str, Keyset]:
        """The mint's keysets by id; those active in `unit` and those `wanted` with their keys.

        From memory while that is fresh. Raises RailUnavailable, RailRejected.
        """
        listed = {keyset.id: keyset for keyset in await self.mint.keysets()}
        active = [one.id for one in listed.values() if one.active and one.unit == unit]
        for keyset_id in (*active[:_ACTIVE_MAX], *wanted):
            if keyset_id in listed:
                listed[keyset_id] = await self.mint.keys(keyset_id)
        return listed

    async def output_keyset(self, unit: str) -> Keyset | None:
        """The keyset to put new money in, with its keys. Raises RailUnavailable, RailRejected."""
        return output_keyset((await self.keysets(unit)).values(), unit, self.now_s())

    async def resolve(self, token: Token) -> Token | UnknownKeyset:
        """The token with whole keyset ids; asks the mint anew for ids it did not have before.

        Raises RailUnavailable, RailRejected, InvalidCredential (an ambiguous short id).
        """
        resolved = resolve_keyset_ids(token, await self._ids())
        if not isinstance(resolved, UnknownKeyset):
            return resolved
        with suppress(RailRejected):
            await self.mint.keys(resolved.keyset_id)  # makes it read its list again, if old
        return resolve_keyset_ids(token, await self._ids())

    async def _ids(self) -> list[str]:
        return [keyset.id for keyset in await self.mint.keysets()]

    async def enforces_locks(self) -> bool:
        """Whether the mint says that a locked proof is spent by its key alone.

        Raises RailUnavailable, RailRejected.
        """
        return await self._supported() >= _LOCK_NUTS

    async def gives_change(self) -> bool:
        """Whether it gives back what a Lightning payment did not need (NUT-08).

        Raises RailUnavailable, RailRejected.
        """
        return _CHANGE_NUT in await self._supported()

    async def _supported(self) -> frozenset[int]:
        """What the mint says that it supports; asked once an hour."""
        nuts, known_until_s = self._nuts
        if not 0 <= known_until_s - self.now_s() <= _INFO_AGE_MAX_S:
            nuts = (await self.mint.info()).nuts
            self._nuts = nuts, self.now_s() + _INFO_AGE_MAX_S
        return nuts

    def now_s(self) -> int:
        """Unix seconds."""
        return self._clock.now_ns() // NS_PER_S


class Mints:
    """The mints by URL: those listed, and for swaps across Lightning any other."""

    def __init__(
        self,
        config: CashuConfig,
        clock: Clock,
        session: aiohttp.ClientSession,
        guarded: aiohttp.ClientSession,
    ) -> None:
        self.config = config
        self._clock = clock
        self._guarded = guarded
        self._places = {
            terms.url: MintPlace(
                terms, HttpMint(terms.url, session, clock, limits=config.limits), clock
            )
            for terms in config.mints
        }
        self._foreign: OrderedDict[str, MintPlace] = OrderedDict()

    def known(self, url: str) -> MintPlace | None:
        """A listed mint, trusted or refused."""
        return self._places.get(url)

    def trusted(self) -> list[MintPlace]:
        """Mints whose money we take, as listed."""
        return [place for place in self._places.values() if place.terms.trusted]

    def listed(self) -> list[MintPlace]:
        """Every listed mint: we may hold money even at one that is refused by now."""
        return list(self._places.values())

    def any(self, url: str) -> MintPlace:
        """The place of any mint. One that is not listed is reached at public addresses only."""
        place = self._places.get(url) or self._foreign.get(url)
        if place is None:
            mint = HttpMint(url, self._guarded, self._clock, limits=self.config.limits)
            place = MintPlace(MintTerms(url=url, trusted=False), mint, self._clock)
            self._foreign[url] = place
            if len(self._foreign) > _FOREIGN_MAX:
                self._foreign.popitem(last=False)
        return place

    async def set_ceilings(self, ledger: Ledger) -> None:
        """Put every listed mint's ceilings into the books. Raises StoreError if they refuse."""
        for place in self.listed():
            terms = place.terms
            for unit in terms.units:
                unswapped = unswapped_account(place.url, unit)
                known = await ledger.store.account(unswapped)
                if terms.trusted:
                    custody = custody_account(place.url, unit)
                    await ledger.limit_custody(custody, BTC.code, terms.ceiling_msat)
                if known is not None or terms.offline_max_msat:
                    await ledger.limit_custody(unswapped, BTC.code, terms.offline_max_msat)
