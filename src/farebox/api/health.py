"""Whether the process is up, and the key that its receipts are signed with."""

from __future__ import annotations

from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document
from farebox.paywall.model import Answer


async def health(context: ApiContext, incoming: Incoming) -> Answer:
    """It answers, so it is up. Whether it can work is for `farebox doctor` to say.

    `receipt_key` (Ed25519, hex) checks `X-Farebox-Receipt`: base64url of a JSON document, a dot,
    base64url of the signature of that document's bytes.
    """
    return document({"status": "ok", "receipt_key": context.receipt_key.hex()})
