"""Transfers of a token that its payer signs (EIP-3009), as an x402 client hands them in."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from eth_account import Account
from eth_account.signers.local import LocalAccount

#: What is signed, in EIP-712's words.
TYPES: Final = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}


def domain_of(token: str, chain_id: int) -> dict[str, Any]:
    """The EIP-712 domain of a token that calls itself what Circle's does."""
    return {"name": "USD Coin", "version": "2", "chainId": chain_id, "verifyingContract": token}


def payload_of(
    payer: LocalAccount, domain: Mapping[str, Any], message: Mapping[str, Any]
) -> dict[str, Any]:
    """What its payer has signed, and the signature."""
    signed = Account.sign_typed_data(payer.key, domain, TYPES, message)
    told = {name: str(one) if isinstance(one, int) else one for name, one in message.items()}
    return {
        "signature": f"0x{signed.signature.hex().removeprefix('0x')}",
        "authorization": told,
    }


def credential_of(
    payer: LocalAccount, domain: Mapping[str, Any], message: Mapping[str, Any]
) -> str:
    """The same as a client of x402's second version sends it."""
    return encoded(
        {
            "x402Version": 2,
            "accepted": {"scheme": "exact", "network": f"eip155:{domain['chainId']}"},
            "payload": payload_of(payer, domain, message),
        }
    )


def encoded(document: Mapping[str, Any]) -> str:
    """A document as a header carries it."""
    return base64.b64encode(json.dumps(document).encode()).decode()
