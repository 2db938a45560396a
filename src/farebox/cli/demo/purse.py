"""The caller's wallet: takes tokens by swapping them at their mint, so that they are really his."""

from __future__ import annotations

import os

import aiohttp

from farebox.clock import NS_PER_S, Clock
from farebox.ecash.receive import Receive, Terms, plan_receive
from farebox.ecash.saga import Done, advance_swap
from farebox.errors import RailRejected
from farebox.rails.cashu import HttpMint
from farebox.wire.cashu.model import Proof
from farebox.wire.cashu.token import UnknownKeyset, decode_token, resolve_keyset_ids
from farebox.wire.cashu.wallet_keys import WalletKeys

_UNIT = "sat"


class Purse:
    """Proofs of one mint that nobody else can spend."""

    def __init__(self, mint_url: str, session: aiohttp.ClientSession, clock: Clock) -> None:
        self._mint = HttpMint(mint_url, session, clock)
        self._clock = clock
        self._keys = WalletKeys(os.urandom(32))
        self._counter = 0
        self._proofs: list[Proof] = []

    @property
    def sat(self) -> int:
        """What is in it."""
        return sum(proof.amount for proof in self._proofs)

    async def claim(self, text: str) -> int:
        """Swap a token for proofs of our own; gives what it was worth, in sat.

        Raises RailRejected when it is worth nothing: then somebody lied to us.
        """
        listed = await self._mint.keysets()
        token = resolve_keyset_ids(decode_token(text), [keyset.id for keyset in listed])
        if isinstance(token, UnknownKeyset):
            raise RailRejected("the token is of a keyset that its mint does not have")
        ids = {proof.keyset_id for proof in token.proofs} | {one.id for one in listed if one.active}
        keysets = {keyset_id: await self._mint.keys(keyset_id) for keyset_id in ids}
        received = plan_receive(token, keysets, Terms(_UNIT), self._clock.now_ns() // NS_PER_S)
        if not isinstance(received, Receive):
            raise RailRejected(received.message)
        plan = received.swap_plan(self._counter)
        self._counter += plan.output_count
        done = await advance_swap(plan, self._mint, self._keys, asked_before=False)
        if not isinstance(done, Done):
            raise RailRejected(done.reason)
        self._proofs += done.proofs
        return received.net
