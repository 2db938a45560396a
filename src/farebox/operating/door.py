"""The operator's door: probes and metrics on an address of their own, out of strangers' reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from farebox.api import health
from farebox.api.problems import not_found
from farebox.gateway.asgi import Receive, Scope, Send, send_answer
from farebox.operating.findings import Verdict
from farebox.operating.metrics import MEDIA_TYPE, Metrics
from farebox.operating.vitals import Vitals
from farebox.paywall.model import Answer


def ready(vitals: Vitals) -> Answer:
    """The answer to `/readyz`, which strangers may read: what is well is not told in figures."""
    findings = vitals.findings()
    checks = [
        {
            "check": one.check,
            "state": one.verdict.value,
            "reason": "" if one.verdict is Verdict.FINE else one.found,
        }
        for one in findings
    ]
    return health.ready(
        checks, can_serve=all(one.verdict is not Verdict.FAILURE for one in findings)
    )


class OperatorDoor:
    """An ASGI app. Serve it where only the operator's own programs can connect, or mount it in an
    app of your own behind your own authentication."""

    def __init__(self, probes: Mapping[str, Callable[[], Answer]], metrics: Metrics) -> None:
        self._probes = probes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            await send_answer(send, await self._answer(path), method=scope["method"])

    async def _answer(self, path: str) -> Answer:
        if path == "/metrics":
            return health.metrics(await self._metrics.exposition(), MEDIA_TYPE)
        probe = self._probes.get(path)
        return probe() if probe else not_found("not_found", "There are metrics and probes here.")
