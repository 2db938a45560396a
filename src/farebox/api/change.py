"""The change of a paid request."""

from __future__ import annotations

from farebox.api.context import ApiContext
from farebox.api.http import Incoming
from farebox.paywall.model import Answer


async def change(context: ApiContext, incoming: Incoming) -> Answer:
    """Tell whoever presents the money that paid for a request what became of it, each time."""
    presented = context.paywall.read(incoming.headers)
    if isinstance(presented, Answer):
        return presented
    return await context.paywall.change(incoming.path["request_id"], presented)
