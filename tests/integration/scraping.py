"""Reading the metrics of a house at its operator's door."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from farebox.bootstrap import Farebox
from farebox.testing.asgi import serving

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(farebox: Farebox) -> tuple[str, Samples]:
    """What Prometheus would read."""
    async with serving(farebox.operator) as url, httpx.AsyncClient(timeout=60) as client:
        answer = await client.get(f"{url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    return answer.text, samples


def of(samples: Samples, name: str, **labels: str) -> float:
    """One sample; 0 where it was never counted."""
    return samples.get((name, frozenset(labels.items())), 0)
