"""What token to ask for: a unit, the mints, and an amount that still suffices after mint fees."""

from __future__ import annotations

from farebox.errors import RailError
from farebox.money import Rounding, divide
from farebox.paywall.dialects import CashuOffer
from farebox.rails.cashu.config import MSAT_PER_UNIT
from farebox.rails.cashu.mints import MintPlace, Mints
from farebox.wire.cashu.amounts import fee_of_ppk
from farebox.wire.cashu.locks import P2PK
from farebox.wire.cashu.request import LockOption


class Offers:
    """Writes the eCash terms of a challenge."""

    def __init__(self, mints: Mints, lock_key: bytes) -> None:
        """`lock_key` is the public key that tokens may be locked to."""
        self._mints = mints
        self._lock_key = lock_key

    async def offer(self, amount_msat: int) -> CashuOffer | None:
        """The token that pays for `amount_msat`; None when no mint is trusted."""
        for unit, msat in MSAT_PER_UNIT.items():
            places = [place for place in self._mints.trusted() if unit in place.terms.units]
            if places:
                net = divide(amount_msat, msat, Rounding.UP)
                fee = max([await _fee(place, unit, net) for place in places])
                urls = tuple(place.url for place in places)
                # Asked for only where it gains the payer something: an answer without a mint call.
                offline = any(place.terms.offline_max_msat for place in places)
                lock = LockOption(P2PK, self._lock_key.hex()) if offline else None
                return CashuOffer(net + fee, unit, urls, lock)
        return None


async def _fee(place: MintPlace, unit: str, net: int) -> int:
    """What the mint takes for a token of `net` in powers of two; 0 where it cannot be known.

    A token that falls short of the fee all the same is told so, and nothing of it is taken.
    """
    try:
        keyset = await place.output_keyset(unit)
    except RailError:
        return 0
    if keyset is None:
        return 0
    proofs = net.bit_length() + 1  # one more than `net` needs: the fee may take a proof itself
    return fee_of_ppk(keyset.input_fee_ppk * proofs)
