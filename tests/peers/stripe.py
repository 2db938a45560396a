"""Two stand-ins for Stripe: localstripe, which keeps state, and stripe-mock, which is strict.

localstripe's own command listens on every interface and keeps a file under a fixed name, so it is
started by a launcher of ours: on loopback, without the file. It does not know Checkout, disputes,
idempotency keys, or refunds that are too large. stripe-mock checks every request against Stripe's
OpenAPI and answers with an example; nothing that it says is remembered.
"""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.peers.install import environment, stripe_mock_program
from tests.peers.process import PeerProcess, free_port

_READY_TIMEOUT_S = 60
_LAUNCHER = """
import sys
from aiohttp import web
from localstripe import resources, server
resources.Store.dump_to_disk = lambda self: None
web.run_app(server.app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


class Localstripe:
    """A server, empty at its start."""

    api_key = "sk_test_12345"

    def __init__(self, directory: Path) -> None:
        self._python = environment("localstripe") / "bin" / "python"
        self._directory = directory
        self._port = free_port()
        self._process: PeerProcess | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it. Raises PeerUnavailable."""
        env = {"PATH": os.environ.get("PATH", ""), "HOME": str(self._directory)}
        command = [str(self._python), "-c", _LAUNCHER, str(self._port)]
        self._process = PeerProcess(command, env, self._directory / "said.log")
        self._process.wait_ready(f"{self.url}/js.stripe.com/v3/", _READY_TIMEOUT_S)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()

    def send_webhooks(self, url: str, secret: str) -> None:
        """Where it reports what happens, from now on."""
        body = json.dumps({"url": url, "secret": secret}).encode()
        request = urllib.request.Request(f"{self.url}/_config/webhooks/house", body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request):
            pass

    def card(self, number: str) -> str:
        """What a payer's browser gives us for a card: its number goes to Stripe alone."""
        fields = {"type": "card", "card[number]": number, "card[cvc]": "123"}
        fields |= {"card[exp_month]": "12", "card[exp_year]": "2030"}
        return str(self.call("/v1/payment_methods", fields)["id"])

    def pay(self, intent: str, number: str) -> None:
        """What a payer's browser does on a page with Stripe's script. HTTPError: declined."""
        token = self.card(number)
        self.call(f"/v1/payment_intents/{intent}", {"payment_method": token})
        self.call(f"/v1/payment_intents/{intent}/confirm", {})

    def refunds(self, intent: str) -> list[dict[str, Any]]:
        """What was given back of a payment."""
        request = urllib.request.Request(f"{self.url}/v1/refunds?payment_intent={intent}")
        request.add_header("Authorization", f"Bearer {self.api_key}")
        with urllib.request.urlopen(request) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]
            return found

    def call(self, path: str, fields: dict[str, str]) -> dict[str, Any]:
        """One call of its API, as the payer's browser or the dashboard makes it."""
        request = urllib.request.Request(
            f"{self.url}{path}", urllib.parse.urlencode(fields).encode()
        )
        request.add_header("Authorization", f"Bearer {self.api_key}")
        with urllib.request.urlopen(request) as answer:
            told: dict[str, Any] = json.load(answer)
            return told


class StripeMock:
    """A server that knows Stripe's OpenAPI."""

    api_key = "sk_test_123"

    def __init__(self, directory: Path) -> None:
        self._program = stripe_mock_program()
        self._directory = directory
        self._port = free_port()
        self._process: PeerProcess | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it. Raises PeerUnavailable."""
        env = {"PATH": os.environ.get("PATH", "")}
        address = f"127.0.0.1:{self._port}"
        # Also a port for HTTPS that nobody asks: else it is one and the same for all that run.
        command = [str(self._program), "-http-addr", address, "-https-addr", "127.0.0.1:0"]
        self._process = PeerProcess(command, env, self._directory / "said.log")
        self._process.wait_listening(self._port, _READY_TIMEOUT_S)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()
