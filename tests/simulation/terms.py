"""How the operators of the simulated houses have set them up."""

from __future__ import annotations

from random import Random
from typing import Final

from tests.simulation.card_dialects import (
    API_KEY,
    CLIENT_ID,
    CLIENT_SECRET,
    WEBHOOK_SECRET,
    PaypalDialect,
    StripeDialect,
)
from tests.simulation.chain_checker import DEPTHS as BITCOIN_DEPTHS
from tests.simulation.evm_checker import COIN_DEPTH, NAME
from tests.simulation.evm_checker import DEPTHS as EVM_DEPTHS
from tests.simulation.evm_contracts import CHAIN_ID, DOMAIN, TOKEN
from tests.simulation.evm_node import NODE as EVM_NODE
from tests.simulation.lightning import NODE
from tests.simulation.mint import HOME
from tests.simulation.weather import Weather

#: Of nobody's money: everybody knows it.
MNEMONIC: Final = "test test test test test test test test test test test junk"
MACAROON: Final = "0201036c6e64" * 8
#: A cent is 10,000 msat, a smallest unit of the token is one, so much coin is one.
_RATES: Final[dict[str, object]] = {
    "rates": {"btc_usd": "100000", "spread_ppm": 0},
    "rate": [{"asset": "USDC", "price": "1"}, {"asset": "ETH", "price": "2000"}],
}
_BITCOIN: Final[dict[str, object]] = {
    "bitcoin.url": "http://chain.sim",
    "bitcoin.login": "user:password",
    "bitcoin.key": "of the model",
    "bitcoin.network": "regtest",
    "bitcoin.start_height": 0,
    "bitcoin.deposit_min": "1000 sat",
    "bitcoin.payout_min": "1000 sat",
    "bitcoin.confirmations": [f"{depth} from {sat} sat" for sat, depth in BITCOIN_DEPTHS],
    "bitcoin.fee_rate": 1,
    "bitcoin.batch_window_s": 2,
    "bitcoin.round_s": 3,
}
_LIGHTNING: Final[dict[str, object]] = {
    "lightning.url": f"https://{NODE}",
    "lightning.key": MACAROON,
    "lightning.network": "bcrt",
    "lightning.fee_base": "1 sat",
    "lightning.fee_ppm": 0,
}
_EVM: Final[dict[str, object]] = {
    "name": NAME,
    "chain_id": CHAIN_ID,
    "block_s": 4,
    "url": f"http://{EVM_NODE}",
    "key": MNEMONIC,
    "send_confirmations": 3,
    "asset": [
        {"asset": "ETH", "confirmations": [f"{COIN_DEPTH} from 0"]},
        {
            "asset": "USDC",
            "contract": TOKEN,
            "scale": 6,
            "domain": DOMAIN["name"],
            "domain_version": DOMAIN["version"],
            "confirmations": [f"{depth} from {least // 10**6}" for least, depth in EVM_DEPTHS],
        },
    ],
}
_CARDS: Final[dict[str, dict[str, object]]] = {
    "stripe": {
        "stripe.key": API_KEY,
        "stripe.webhook_secret": WEBHOOK_SECRET,
        "stripe.url": f"http://{StripeDialect.host}",
    },
    "paypal": {
        "paypal.client_id": CLIENT_ID,
        "paypal.client_secret": CLIENT_SECRET,
        "paypal.webhook_id": PaypalDialect.webhook_id,
        "paypal.url": f"http://{PaypalDialect.host}",
    },
}


def settings_of(chance: Random, weather: Weather) -> dict[str, object]:
    """As a settings file would have them."""
    mint: dict[str, object] = {"url": f"https://{HOME}"}
    if weather.offline_sat:
        mint["offline_max"] = f"{weather.offline_sat} sat"
    chosen: dict[str, object] = {
        "data_dir": "/simulated",
        "mint": [mint],
        "upstream": [{"urls": ["http://upstream.sim"]}],
        "price": [
            {"path": "/echo", "per_request": "10 sat"},
            {"path": "/v1/*", "per_output_token": "0.3 sat"},
        ],
        "ecash.foreign": chance.choice(("refuse", "swap")),
        "ecash.consolidate_proofs": chance.choice((3, 16, 64)),
    }
    if weather.chain is not None:
        chosen |= _BITCOIN
    if weather.evm is not None:
        chain = _EVM | {"batch_wait_s": weather.evm.batch_wait_s, "senders": weather.evm.senders}
        chosen |= {"evm": [chain], **_RATES}
    if weather.cards is not None:
        name = weather.cards.provider
        chosen |= _CARDS[name] | _RATES
        chosen |= {f"{name}.fee_fixed": "0.00", f"{name}.fee_ppm": 0}
    if weather.node is not None:
        chosen |= _LIGHTNING
    return chosen
