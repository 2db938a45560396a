"""Worlds with one kind of trouble in each, so that nearly every seed of one meets it.

A seed's own world is drawn from everything there is; a scene is a corner of that. What is planted
to be found is looked for where it has to show, whatever moves in the house's own timing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.simulation.weather import (
    CardWeather,
    ChainWeather,
    DiskWeather,
    EvmWeather,
    NetworkWeather,
    NodeWeather,
    Weather,
)

_CLEAR: Final = Weather(
    disk=DiskWeather(),
    mint=NetworkWeather(),
    caller=NetworkWeather(),
    mint_refuses=0,
    upstream_fails=0,
    caller_leaves=0,
    storm_s=40,
    crash_every_steps=0,
    power_loss=0,
    clock_jumps=False,
    rotates_keys=False,
    is_shuffled=True,
    callers=3,
)
_CRASHES: Final = replace(_CLEAR, crash_every_steps=200)
_SLOW: Final = NetworkWeather(latency_s=0.4)

SCENES: Final[dict[str, Weather]] = {
    "answers of mints are lost": replace(_CLEAR, mint=NetworkWeather(loses_answer=0.3)),
    "mints refuse what they have done": replace(
        _CLEAR, mint=NetworkWeather(loses_answer=0.3, repeats_call=0.3), mint_refuses=0.1
    ),
    "the power goes": replace(_CRASHES, power_loss=1, disk=DiskWeather(commit_s=0.02)),
    "crashes": _CRASHES,
    "mints are slow": replace(_CLEAR, mint=_SLOW),
    "three houses": replace(_CLEAR, mint=_SLOW, houses=3, callers=4),
    "little may be locked": replace(_CLEAR, offline_sat=400, callers=4),
    "locked tokens": replace(
        _CLEAR, mint=NetworkWeather(loses_call=0.3), offline_sat=2_000, callers=6, storm_s=80
    ),
    "locks are broken": replace(_CLEAR, offline_sat=2_000, breaks_locks=True, callers=4),
    "payments come in by Lightning": replace(
        _CLEAR, callers=4, storm_s=60, node=NodeWeather(wire=NetworkWeather(loses_answer=0.1))
    ),
    "the line to the node is dead": replace(
        _CLEAR, callers=4, node=NodeWeather(wire=NetworkWeather(loses_call=0.5, loses_answer=0.3))
    ),
    "payments go out by Lightning": replace(
        _CLEAR, node=NodeWeather(hangs=0.3, hangs_s=60, hangs_up=0.3, fills=0.9)
    ),
    "calls to the node are late": replace(
        _CLEAR,
        storm_s=400,
        node=NodeWeather(fails=0.3, hangs_up=0.3, fills=0.9, wire=NetworkWeather(delays_call=0.3)),
    ),
    "blocks are left": replace(
        _CLEAR,
        storm_s=100,
        callers=2,
        chain=ChainWeather(block_s=5, reorganises=0.3, double_spends=0.6, fills=0.5),
    ),
    "payments go out on the chain": replace(
        _CLEAR,
        callers=2,
        chain=ChainWeather(block_s=15, leaves_out=0.3, forgets=0.3, fills=0.9),
    ),
    "an EVM chain is reorganised": replace(
        _CLEAR,
        storm_s=60,
        callers=4,
        evm=EvmWeather(block_s=10, reorganises=0.5, double_spends=0.1, fills=0.1),
    ),
    "payments vanish from an EVM chain": replace(
        _CLEAR,
        callers=3,
        evm=EvmWeather(block_s=5, reorganises=0.3, double_spends=0.6, fills=0.3),
    ),
    "answers of an EVM node are lost": replace(
        _CLEAR,
        callers=2,
        evm=EvmWeather(block_s=15, forgets=0.3, fills=0.9, wire=NetworkWeather(loses_answer=0.1)),
    ),
    "payments leave an EVM chain together": replace(
        _CLEAR,
        callers=6,
        storm_s=150,
        evm=EvmWeather(
            block_s=3,
            reorganises=0.1,
            blocks_payees=1,
            fills=0.9,
            batch_wait_s=40,
            senders=2,
            is_at_home=True,
            wire=NetworkWeather(loses_answer=0.02),
        ),
    ),
    "EVM payments are signed": replace(
        _CLEAR,
        callers=3,
        storm_s=60,
        evm=EvmWeather(
            block_s=5,
            reorganises=0.2,
            copies=0.3,
            signs=0.9,
            senders=2,
            wire=NetworkWeather(loses_answer=0.1),
        ),
    ),
    "card payments are taken back": replace(
        _CLEAR,
        callers=3,
        cards=CardWeather(
            loses_webhook=0.9, repeats_webhook=0.3, disputes=0.9, dashboard=0.1, fills=0.5
        ),
    ),
    "answers about refunds are lost": replace(
        _CLEAR,
        storm_s=60,
        callers=2,
        cards=CardWeather(hangs=0.3, fails=0.3, fills=0.9, wire=NetworkWeather(loses_answer=0.4)),
    ),
    "PayPal takes payments back": replace(
        _CLEAR,
        callers=3,
        cards=CardWeather(
            provider="paypal",
            loses_webhook=0.9,
            repeats_webhook=0.3,
            disputes=0.9,
            dashboard=0.1,
            fills=0.5,
        ),
    ),
    "answers about charges are lost": replace(
        _CLEAR,
        storm_s=60,
        callers=3,
        cards=CardWeather(
            hangs=0.3,
            fails=0.3,
            declines=0.1,
            fills=0.5,
            charges=0.9,
            wire=NetworkWeather(loses_answer=0.15),
        ),
    ),
    "answers of PayPal about charges are lost": replace(
        _CLEAR,
        storm_s=60,
        callers=3,
        cards=CardWeather(
            provider="paypal",
            hangs=0.3,
            fails=0.3,
            declines=0.1,
            fills=0.5,
            charges=0.9,
            wire=NetworkWeather(loses_answer=0.15),
        ),
    ),
    "answers of PayPal about refunds are lost": replace(
        _CLEAR,
        storm_s=60,
        callers=3,
        cards=CardWeather(
            provider="paypal",
            declines=0.1,
            hangs=0.3,
            fails=0.3,
            fills=0.9,
            wire=NetworkWeather(loses_answer=0.25),
        ),
    ),
}
