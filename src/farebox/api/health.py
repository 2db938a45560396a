"""What machines ask about a process: whether it lives, whether it can serve, how it fares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from farebox.api.http import NO_STORE, document
from farebox.paywall.model import Answer


def health(receipt_key: bytes) -> Answer:
    """It answers, so it lives. Whether it can work is for `ready` to say.

    `receipt_key` (Ed25519, hex) checks `X-Farebox-Receipt`: base64url of a JSON document, a dot,
    base64url of the signature of that document's bytes.
    """
    return document({"status": "ok", "receipt_key": receipt_key.hex()})


def ready(checks: Sequence[Mapping[str, str]], *, can_serve: bool) -> Answer:
    """200 where requests can be served, else 503: send them elsewhere. `checks` say why."""
    status = "ready" if can_serve else "unready"
    return document({"status": status, "checks": checks}, 200 if can_serve else 503)


def metrics(exposition: bytes, media_type: str) -> Answer:
    """Metrics in a text that Prometheus reads."""
    return Answer(200, ((b"content-type", media_type.encode()), NO_STORE), exposition)
