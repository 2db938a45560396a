"""payment-kit, Nuwa's own client and server for payment channels, unmodified from npm.

Its chain is taken away: `payment-kit/chain.mjs` answers in place of the contract's calls.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from farebox.wire import base58
from farebox.wire.subrav.keys import KeyType, SigningKey
from tests.peers.install import HERE, PeerUnavailable, node_packages
from tests.peers.process import PeerProcess, free_port

_SCRIPTS = HERE / "payment-kit"
_TIMEOUT_S = 120


class PaymentKit:
    """The packages, and what runs with them."""

    def __init__(self) -> None:
        self._home = node_packages("payment-kit")

    def drive(self, scenario: Mapping[str, Any], script: str = "client.mjs") -> list[Any]:
        """Run a client through a scenario; what each step came to. Raises PeerUnavailable."""
        ended = subprocess.run(
            ["node", str(_SCRIPTS / script)],
            input=json.dumps(scenario),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        told = ended.stdout.rpartition("\n@@")[2]
        if ended.returncode != 0 or "\n@@" not in ended.stdout:
            raise PeerUnavailable(f"the client ended: {ended.stdout}{ended.stderr}"[-2_000:])
        happened: list[Any] = json.loads(told)
        return happened

    def server(
        self, directory: Path, settings: Mapping[str, Any], script: str = "server.mjs"
    ) -> PaymentKitServer:
        """A server of theirs, `server.mjs` or `tools_server.mjs`; `wait_ready` for it."""
        return PaymentKitServer(self.env, directory, settings, script)

    @property
    def env(self) -> dict[str, str]:
        """Nothing of the caller's environment but the path."""
        return {"PATH": os.environ.get("PATH", ""), "PAYMENT_KIT_HOME": str(self._home)}


class PaymentKitServer:
    """payment-kit's Express server on a free port of loopback."""

    def __init__(
        self, env: Mapping[str, str], directory: Path, settings: Mapping[str, Any], script: str
    ) -> None:
        self._port = free_port()
        arguments = json.dumps({**settings, "port": self._port})
        command: Sequence[str] = ["node", str(_SCRIPTS / script), arguments]
        self._process = PeerProcess(command, env, directory / "payment_kit.log")

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def wait_ready(self) -> None:
        """Until it answers. Raises PeerUnavailable."""
        self._process.wait_ready(f"{self.url}/ready", _TIMEOUT_S)

    def stop(self) -> None:
        """End it."""
        self._process.stop()


def key_document(did: str, fragment: str, key: SigningKey) -> dict[str, str]:
    """A key as identity-kit imports it: the scalar of secp256k1, the others in PKCS#8."""
    return {
        "did": did,
        "keyId": f"{did}#{fragment}",
        "keyType": key.type.value,
        "publicKeyMultibase": key.public.multibase,
        "privateKeyMultibase": "z" + base58.encode(_stored(key)),
    }


def _stored(key: SigningKey) -> bytes:
    pkcs8 = serialization.PrivateFormat.PKCS8
    der, plain = serialization.Encoding.DER, serialization.NoEncryption()
    match key.type:
        case KeyType.SECP256K1:
            return key.secret
        case KeyType.ED25519:
            return Ed25519PrivateKey.from_private_bytes(key.secret).private_bytes(der, pkcs8, plain)
        case KeyType.SECP256R1:
            scalar = int.from_bytes(key.secret, "big")
            return ec.derive_private_key(scalar, ec.SECP256R1()).private_bytes(der, pkcs8, plain)
        case KeyType.EIP712:
            raise ValueError("payment-kit has no such key")
