"""What a chain needs done again and again: all that is on its way followed, what a payment needs
brought together, batches, sweeps."""

from __future__ import annotations

import structlog

from farebox.errors import RailError
from farebox.rails.evm.disperse import Disperse
from farebox.rails.evm.gathering import Gathering
from farebox.rails.evm.sending import Sending
from farebox.rails.evm.sweeping import Sweeping

_log = structlog.get_logger("farebox.evm")


class Upkeep:
    """One chain's round. Without `disperse` every payment leaves alone."""

    def __init__(
        self,
        sending: Sending,
        sweeping: Sweeping,
        gathering: Gathering,
        disperse: Disperse | None,
    ) -> None:
        self._sending = sending
        self._gathering = gathering
        self._sweeping = sweeping
        self._disperse = disperse

    async def run(self) -> None:
        """One round; a node that does not answer ends it."""
        try:
            await self._sweeping.learn()
            await self._sending.tick()
            await self._gathering.run()
            if self._disperse is not None:
                await self._disperse.run()
            await self._sweeping.run()
        except RailError as error:
            _log.warning("evm.not_kept_up", chain=self._sending.terms.chain, reason=str(error))
