"""Whether the process is up."""

from __future__ import annotations

from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document
from farebox.paywall.model import Answer


async def health(context: ApiContext, incoming: Incoming) -> Answer:
    """It answers, so it is up. Whether it can work is for `farebox doctor` to say."""
    return document({"status": "ok"})
