"""The rails of a house as somebody sees them who pays in and is paid out, each on its real peer."""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from eth_account.hdaccount.mnemonic import Mnemonic

from farebox.rails.evm.keys import keys_from
from tests.integration.bitcoin_house import bitcoin_settings
from tests.integration.card_house import CENT_MSAT
from tests.integration.evm_house import CONFIRMATIONS, FLOAT_WEI, RATES, evm_settings, somebody
from tests.integration.lightning_house import lightning_settings
from tests.peers.anvil import CONTRACTS, Anvil
from tests.peers.bitcoin import BitcoinChain
from tests.peers.lnd import LightningNetwork
from tests.peers.stripe import Localstripe

Asked = Mapping[str, Any]
_places = count(5_000)
_SECRETS = {"key", "login", "webhook_secret"}


class Rail(ABC):
    """One way money moves. Everything here blocks."""

    #: How it is called, what is paid in, and what that comes to on an account.
    method: str
    asset = "BTC"
    amount: int
    credited_msat: int
    #: How money leaves by it.
    out_path = "/v1/payouts"

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """How a house is told of it."""

    @abstractmethod
    def pay(self, asked: Asked) -> None:
        """Somebody pays what was asked for."""

    @abstractmethod
    def order(self, asked: Asked) -> dict[str, object]:
        """What the owner of a deposit has paid out: a part of it, to a place of its own."""

    @abstractmethod
    def arrived(self, order: Mapping[str, object]) -> list[int]:
        """What came there, each payment by itself, in the asset's smallest unit."""

    @abstractmethod
    def wanted(self, order: Mapping[str, object]) -> int:
        """What is to come there."""

    def begin(self, url: str) -> None:  # noqa: B027  # most have nothing to do
        """It may tell a gateway what happens, at `url`."""

    def go_on(self) -> None:  # noqa: B027
        """Time passes there."""

    def is_at_rest(self) -> bool:
        """Whether nothing there waits for the house."""
        return True

    def assert_right(self, held: Mapping[str, int]) -> None:  # noqa: B027
        """What the books hold, by account, is what lies there."""


class Lightning(Rail):
    """LND."""

    method = "lightning"
    amount = credited_msat = 60_000

    def __init__(self, network: LightningNetwork) -> None:
        self._network = network
        self._before_msat = network.house.channel_msat()

    def settings(self) -> dict[str, object]:
        return {"lightning": lightning_settings(self._network, self._network.house.bake())}

    def pay(self, asked: Asked) -> None:
        assert self._network.payer.pay(asked["pay"]) == "SUCCEEDED"

    def order(self, asked: Asked) -> dict[str, object]:
        return {"destination": self._network.payer.invoice(20_000)}

    def wanted(self, order: Mapping[str, object]) -> int:
        return 20_000

    def arrived(self, order: Mapping[str, object]) -> list[int]:
        return [self._network.payer.received_msat(str(order["destination"]))]


class Bitcoin(Rail):
    """A wallet on a node's chain."""

    method = "bitcoin"
    amount = credited_msat = 60_000_000

    def __init__(self, chain: BitcoinChain) -> None:
        self._chain = chain
        self._since = chain.node.height() + 1

    def settings(self) -> dict[str, object]:
        terms = bitcoin_settings(self._chain, start_height=self._since, payout_confirmations=1)
        return {"bitcoin": terms}

    def pay(self, asked: Asked) -> None:
        self._chain.payer.pay(asked["pay"], self.amount // 1_000)

    def go_on(self) -> None:
        if self._chain.node.pool():
            self._chain.node.mine()

    def order(self, asked: Asked) -> dict[str, object]:
        return {
            "destination": self._chain.payer.address(next(_places)),
            "amount_msat": 20_000_000,
        }

    def wanted(self, order: Mapping[str, object]) -> int:
        return 20_000

    def arrived(self, order: Mapping[str, object]) -> list[int]:
        return self._chain.node.paid_sat(str(order["destination"]), self._since)


class Evm(Rail):
    """USDC on anvil, which has to be swept before it is paid out."""

    method, asset = "anvil", "USDC"
    amount = credited_msat = 50_000_000

    def __init__(self, anvil: Anvil) -> None:
        self._anvil = anvil
        self._usdc = anvil.deploy(CONTRACTS / "AuthorizedToken.sol")
        self._mnemonic = Mnemonic().generate(12)
        self._sender = keys_from(self._mnemonic).addresses[0]
        self._addresses: list[str] = []
        anvil.rpc("anvil_setBalance", self._sender, hex(FLOAT_WEI))

    def settings(self) -> dict[str, object]:
        rates = {**RATES, "rates": {"btc_usd": "100000", "spread_ppm": 0}}
        return {**rates, "evm": [evm_settings(self._anvil, self._usdc, self._mnemonic)]}

    def pay(self, asked: Asked) -> None:
        self._addresses.append(str(asked["pay"]))
        self._usdc.send("mint", self._anvil.accounts[0], self.amount)
        self._anvil.mined(self._usdc.send("transfer", asked["pay"], self.amount))

    def go_on(self) -> None:
        self._anvil.mine(CONFIRMATIONS)

    def order(self, asked: Asked) -> dict[str, object]:
        order = {"method": self.method, "asset": self.asset, "amount": "20000000"}
        return {**order, "destination": somebody()}

    def wanted(self, order: Mapping[str, object]) -> int:
        return 20_000_000

    def arrived(self, order: Mapping[str, object]) -> list[int]:
        return [self._usdc.call("balanceOf", order["destination"])]

    def is_at_rest(self) -> bool:
        return not any(self._usdc.call("balanceOf", one) for one in self._addresses)

    def assert_right(self, held: Mapping[str, int]) -> None:
        ours = {self._sender, *self._addresses}
        usdc = sum(self._usdc.call("balanceOf", one) for one in ours)
        assert usdc == held["custody:evm:anvil:USDC"]
        wei = sum(self._anvil.balance(one) for one in ours)
        assert wei == FLOAT_WEI - held["expense:evm:anvil:gas"]
        for one in self._addresses:
            sent = int(self._anvil.rpc("eth_getTransactionCount", one, "latest"), 16)
            assert sent == 1, "it was swept twice"


class Cards(Rail):
    """Card money through localstripe; only the way back to the card leads out."""

    method, asset = "stripe", "USD"
    amount, credited_msat = 1_000, 1_000 * CENT_MSAT
    out_path = "/v1/refunds"

    def __init__(self, server: Localstripe) -> None:
        self._server = server
        self._secret = secrets.token_hex(16)

    def settings(self) -> dict[str, object]:
        terms = {
            "url": self._server.url,
            "key": self._server.api_key,
            "webhook_secret": self._secret,
            "pay_url": "https://shop.test/pay",
        }
        return {"stripe": terms, "rates": {"btc_usd": "100000", "spread_ppm": 0}}

    def begin(self, url: str) -> None:
        self._server.send_webhooks(f"{url}/v1/webhooks/stripe", self._secret)

    def pay(self, asked: Asked) -> None:
        self._server.pay(_intent(asked), "4242424242424242")

    def order(self, asked: Asked) -> dict[str, object]:
        return {"method": self.method, "asset": self.asset, "amount": 300, "_": _intent(asked)}

    def wanted(self, order: Mapping[str, object]) -> int:
        return 300

    def arrived(self, order: Mapping[str, object]) -> list[int]:
        return [one["amount"] for one in self._server.refunds(str(order["_"]))]


def _intent(asked: Asked) -> str:
    return str(asked["pay"]).partition("_secret_")[0]


def write_settings(path: Path, settings: Mapping[str, object]) -> None:
    """As a file that `farebox serve` reads, with each secret in a file beside it."""
    lines = [f"{key} = {_toml(value, path.parent)}\n" for key, value in settings.items()]
    path.write_text("".join(lines))


def _toml(value: object, folder: Path) -> str:
    if isinstance(value, Mapping):
        hidden = {key: _hidden(key, str(value[key]), folder) for key in _SECRETS & value.keys()}
        members = {**value, **hidden}.items()
        return "{ " + ", ".join(f"{key} = {_toml(one, folder)}" for key, one in members) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(one, folder) for one in value) + "]"
    return json.dumps(value)


def _hidden(name: str, text: str, folder: Path) -> dict[str, str]:
    path = folder / f"{name}.secret"
    path.write_text(text)
    path.chmod(0o600)
    return {"file": str(path)}
