"""Nutshell, the Cashu project's own Python mint, and its command-line wallet."""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import subprocess
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.peers.install import HERE, PeerUnavailable, environment
from tests.peers.process import PeerProcess, free_port

_READY_TIMEOUT_S = 150
_WALLET_TIMEOUT_S = 150
_OUT, _ERROR = "wallet.out", "wallet.error"
_TOKEN = re.compile(r"cashu[AB][A-Za-z0-9_=-]+")
_QUOTE = re.compile(r"--id ([A-Za-z0-9_-]+)")
_BALANCE = re.compile(r"Balance: ([0-9]+) sat")


class Nutshell:
    """A mint in `directory`, its state kept there between starts. Invoices pay themselves.

    `faults` are environment variables such as FAKEWALLET_PAY_INVOICE_STATE=PENDING; a restart may
    change them. The keys follow from a fixed seed and the fee.
    """

    def __init__(
        self, directory: Path, *, fee_ppk: int = 0, faults: Mapping[str, str] | None = None
    ) -> None:
        self._bin = environment("nutshell") / "bin"
        self._directory = directory
        self._fee_ppk = fee_ppk
        self._faults = dict(faults or {})
        self._port = free_port()
        self._process: PeerProcess | None = None

    @property
    def url(self) -> str:
        """Where it listens; the same after a restart."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start and wait until it answers. Raises PeerUnavailable."""
        command = [str(self._bin / "mint"), "--host", "127.0.0.1", "--port", str(self._port)]
        self._process = PeerProcess(command, self._env(), self._directory / "mint.log")
        self._process.wait_ready(f"{self.url}/v1/info", _READY_TIMEOUT_S)

    def stop(self) -> None:
        """End it in good order."""
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        """End it at once, as a power failure would."""
        if self._process:
            self._process.kill()

    def restart(self, faults: Mapping[str, str] | None = None) -> None:
        """Stop it and start it on the same directory and port, with other faults."""
        self.stop()
        self._faults = dict(faults or {})
        self.start()

    @property
    def wallet_command(self) -> Path:
        """The command-line wallet, which other mints may be given to."""
        return self._bin / "cashu"

    def wallet(self, directory: Path) -> NutshellWallet:
        """A command-line wallet of this mint, its purse in `directory`."""
        return NutshellWallet(self.wallet_command, self.url, directory)

    def _env(self) -> dict[str, str]:
        return _bare_env(self._directory) | {
            "MINT_PRIVATE_KEY": "TEST",
            "MINT_BACKEND_BOLT11_SAT": "FakeWallet",
            "MINT_DATABASE": str(self._directory / "db"),
            "MINT_RATE_LIMIT": "FALSE",
            "MINT_INPUT_FEE_PPK": str(self._fee_ppk),
            "MINT_QUOTE_BACKEND_CHECK_RATE_LIMIT": "0",
            "FAKEWALLET_DELAY_INCOMING_PAYMENT": "0",
            "FAKEWALLET_DELAY_OUTGOING_PAYMENT": "0",
            **self._faults,
        }


class NutshellWallet:
    """The wallet `cashu`: each call is a process of its own and takes a second."""

    def __init__(self, command: Path, mint_url: str, directory: Path) -> None:
        self._command = command
        self._mint_url = mint_url
        self._directory = directory

    def invoice(self, amount_sat: int) -> None:
        """Fill the purse by an invoice that pays itself.

        In two steps: left to itself the wallet waits for a notice of the payment, and for ever if
        the payment was quicker than its subscription.
        """
        quote = _QUOTE.search(self._run("invoice", "--no-check", str(amount_sat)))
        if quote is None:
            raise PeerUnavailable("the wallet printed no quote")
        self._run("invoice", str(amount_sat), "--id", quote[1])

    def send(self, amount_sat: int) -> str:
        """A cashuB token out of the purse."""
        said = self._run("send", str(amount_sat))
        token = _TOKEN.search(said)
        if token is None:
            raise PeerUnavailable("the wallet printed no token")
        return token[0]

    def receive(self, token: str) -> None:
        """Take a token into the purse."""
        self._run("receive", token)

    def balance_sat(self) -> int:
        """What the purse holds."""
        balance = _BALANCE.search(self._run("balance"))
        if balance is None:
            raise PeerUnavailable("the wallet printed no balance")
        return int(balance[1])

    def _run(self, *arguments: str) -> str:
        told = _wallets(self._command.with_name("python")).run(
            ["-h", self._mint_url, "-y", *arguments], self._directory
        )
        out, error = ((self._directory / name).read_text() for name in (_OUT, _ERROR))
        if told != 0:
            raise PeerUnavailable(f"cashu {arguments[0]}: {out}{error}"[-2000:])
        return out


class _Wallets:
    """The process that wallets are forked from, one at a time: `nutshell_wallets.py`."""

    def __init__(self, python: Path) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [str(python), str(HERE / "nutshell_wallets.py")],
            env={"PATH": os.environ.get("PATH", "")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self.close)

    def run(self, arguments: Sequence[str], home: Path) -> int:
        """Run one to its end; gives its exit code. What it says is in two files of its home."""
        order = {"arguments": arguments, "cwd": str(home), "env": _bare_env(home)}
        order |= {"out": str(home / _OUT), "error": str(home / _ERROR)}
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None
        assert answers is not None
        with self._lock:
            orders.write(json.dumps(order).encode() + b"\n")
            orders.flush()
            if not select.select([answers], [], [], _WALLET_TIMEOUT_S)[0]:
                raise PeerUnavailable(f"cashu {arguments} does not end")
            return int(answers.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


_wallets = cache(_Wallets)


def _bare_env(home: Path) -> dict[str, str]:
    """Nothing of the caller's environment but the path: settings there would change the peer."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home),
        "CASHU_DIR": str(home / ".cashu"),
        "TOR": "FALSE",
        "LC_ALL": "C.UTF-8",
    }
