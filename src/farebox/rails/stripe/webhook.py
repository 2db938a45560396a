"""Stripe's webhook signatures (https://docs.stripe.com/webhooks#verify-manually).

The header is `t=<Unix seconds>,v1=<hex>,…`: HMAC-SHA256 with the endpoint's secret over
`<t>.<body>`. Of several v1 (while a secret is being changed) one must fit.
"""

from __future__ import annotations

import hashlib
import hmac

from farebox.payments.cards.model import Forged

_HEADER_MAX_CHARS = 1_024


def check_signature(
    header: str, body: bytes, secret: str, *, now_s: int, tolerance_s: int
) -> Forged | None:
    """None when the body is the provider's and not older, or newer, than the tolerance."""
    parts = [part.strip().partition("=") for part in header[:_HEADER_MAX_CHARS].split(",")]
    times = [value for name, _, value in parts if name == "t"]
    given = [value for name, _, value in parts if name == "v1"]
    if len(times) != 1 or not (times[0].isascii() and times[0].isdigit()) or not secret:
        return Forged("there is no signature that can be read")
    wanted = hmac.new(secret.encode(), times[0].encode() + b"." + body, hashlib.sha256).hexdigest()
    # Every one is compared, in constant time, so that nothing shows which came near.
    fits = [hmac.compare_digest(wanted.encode(), one.encode()) for one in given]
    if not any(fits):
        return Forged("the signature is another's")
    if abs(now_s - int(times[0][:20])) > tolerance_s:
        return Forged("it was signed too long ago, or in the future")
    return None
