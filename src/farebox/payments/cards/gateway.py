"""The payment gateway: every provider of card money behind one interface.

It hears what the providers tell, keeps payers' stored methods, and charges them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from farebox.payments.cards.method import CardMethod
from farebox.payments.cards.model import Forged
from farebox.payments.requests import DepositRequests

#: Notices that are remembered as heard. One that is forgotten costs a call, and changes nothing.
_HEARD_MAX = 4_096


class PaymentGateway:
    """The providers at hand, by name."""

    def __init__(self, rails: Mapping[str, CardMethod], requests: DepositRequests) -> None:
        self.rails = rails
        self._requests = requests
        self._heard: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def hear(self, provider: str, headers: Mapping[str, str], body: bytes) -> Forged | None:
        """Take a webhook: None once everything that follows from it is in the books.

        Raises RailUnavailable, StoreError: the provider shall send it again.
        """
        rail = self.rails.get(provider)
        if rail is None:
            return Forged("no such provider is used here")
        notice = await rail.hear(headers, body)
        if notice is None or isinstance(notice, Forged):
            return notice
        name = (provider, notice.id)
        if name in self._heard:
            return None
        async for sighting in rail.about(notice.reference):
            await self._requests.seen(provider, sighting)
        self._heard[name] = None
        if len(self._heard) > _HEARD_MAX:
            self._heard.popitem(last=False)
        return None
