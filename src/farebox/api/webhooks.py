"""What card providers tell us: `POST /v1/webhooks/{provider}`."""

from __future__ import annotations

import structlog

from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document
from farebox.api.problems import bad_request
from farebox.payments.cards.model import Forged
from farebox.paywall.answers import too_many_failures
from farebox.paywall.model import Answer

_log = structlog.get_logger("farebox.cards")


async def hear(context: ApiContext, incoming: Incoming) -> Answer:
    """200 once it is in the books; what is not the provider's is 400 and nothing.

    Anything else that is wrong is 503: the provider sends it again.
    """
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in (incoming.headers)
    }
    provider = incoming.path["provider"]
    # To look at one may cost a call to its provider, who sends again what is not taken now.
    wait_s = context.failures.wait_s(incoming.address)
    if wait_s:
        return too_many_failures(wait_s)
    forged = await context.cards.hear(provider, headers, incoming.body)
    if isinstance(forged, Forged):
        _log.warning("cards.webhook_refused", provider=provider[:32], reason=forged.reason)
        context.failures.failed(incoming.address)
        return bad_request("webhook_refused", "This is not signed by the provider.")
    return document({"received": True})
