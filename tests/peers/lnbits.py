"""LNbits with its fake funding source: its wallets pay each other, and nobody else."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.peers.install import PeerUnavailable, environment
from tests.peers.process import PeerProcess, free_port

_READY_TIMEOUT_S = 120
_CALL_TIMEOUT_S = 60
_PASSWORD = "a-password-of-the-test"
_FUNDS_SAT = 1_000_000

Document = dict[str, Any]


class LnbitsWallet:
    """One wallet, as a person with its admin key uses it."""

    def __init__(self, server: LnbitsServer, facts: Document) -> None:
        self._server = server
        self.id = str(facts["id"])
        self.admin_key = str(facts["adminkey"])
        self.invoice_key = str(facts["inkey"])

    def invoice(self, amount_msat: int, memo: str = "", expiry_s: int = 3_600) -> str:
        """An invoice of this wallet."""
        body = {"out": False, "amount": amount_msat // 1_000, "memo": memo, "expiry": expiry_s}
        return str(self._server.call("POST", "/api/v1/payments", body, self.admin_key)["bolt11"])

    def pay(self, invoice: str) -> str:
        """Pay an invoice; how that ended, in LNbits' words."""
        body = {"out": True, "bolt11": invoice}
        return str(self._server.call("POST", "/api/v1/payments", body, self.admin_key)["status"])


class LnbitsServer:
    """A server in `directory` with two wallets: the house's, and a payer's with money on it."""

    house: LnbitsWallet
    payer: LnbitsWallet

    def __init__(self, directory: Path) -> None:
        self._environment = environment("lnbits")
        self._directory = directory
        self._port = free_port()
        self._process: PeerProcess | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, make the wallets, fund the payer's. Raises PeerUnavailable."""
        # It looks for its static files beside the working directory.
        package = next(self._environment.glob("lib/python*/site-packages/lnbits"))
        (self._directory / "lnbits").symlink_to(package)
        program = str(self._environment / "bin" / "lnbits")
        command = [program, "--host", "127.0.0.1", "--port", str(self._port)]
        self._process = PeerProcess(command, self._env(), self._directory / "said.log")
        self._process.wait_ready(f"{self.url}/api/v1/health", _READY_TIMEOUT_S)
        try:
            chosen = {"username": "super", "password": _PASSWORD, "password_repeat": _PASSWORD}
            login = self.call("PUT", "/api/v1/auth/first_install", chosen)
            self.house = LnbitsWallet(self, self.call("POST", "/api/v1/account", {"name": "house"}))
            self.payer = LnbitsWallet(self, self.call("POST", "/api/v1/account", {"name": "payer"}))
            funds = {"id": self.payer.id, "amount": _FUNDS_SAT}
            token = str(login["access_token"])
            self.call("PUT", "/users/api/v1/balance", funds, bearer=token)
        except (OSError, KeyError) as error:
            self.stop()
            raise PeerUnavailable(f"{type(error).__name__}: {error}") from None

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()

    def call(
        self, method: str, path: str, body: object, key: str = "", bearer: str = ""
    ) -> Document:
        """One call of its API."""
        raw = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, raw, method=method)
        request.add_header("Content-Type", "application/json")
        if key:
            request.add_header("X-Api-Key", key)
        if bearer:
            request.add_header("Authorization", f"Bearer {bearer}")
        try:
            with urllib.request.urlopen(request, timeout=_CALL_TIMEOUT_S) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                raise OSError(f"{path}: {error.read().decode()[:300]}") from None

    def _env(self) -> dict[str, str]:
        """Nothing of the caller's environment but the path, and nothing from the Internet."""
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self._directory),
            "LC_ALL": "C.UTF-8",
            "HOST": "127.0.0.1",
            "PORT": str(self._port),
            "LNBITS_DATA_FOLDER": str(self._directory),
            "LNBITS_BACKEND_WALLET_CLASS": "FakeWallet",
            "LNBITS_ADMIN_UI": "true",
            "LNBITS_EXTENSIONS_MANIFESTS": "[]",
            "LNBITS_WASM_EXTENSIONS_MANIFESTS": "[]",
            "LNBITS_PRICE_AGGREGATOR_ENABLED": "false",
            "LNBITS_EXCHANGE_RATE_PROVIDERS": "[]",
            "AUTH_HTTPS_ONLY": "false",
        }
