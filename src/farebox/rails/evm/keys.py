"""The rail's signer: the private keys of our senders, which leave this module for nobody.

Promises: what is signed is a whole transaction or authorisation of one of our own addresses.
Never: a key in a repr, an error or a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from eth_account import Account
from eth_account.hdaccount import key_from_seed, seed_from_mnemonic
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from farebox.errors import SignerError
from farebox.rails.evm.fees import Fees
from farebox.rails.evm.outbox import Call

#: BIP-44 for Ethereum; the last part counts addresses.
SENDER_PATH = "m/44'/60'/0'/0"


class Keys:
    """Signs for the addresses that it was given keys of."""

    def __init__(self, accounts: Iterable[LocalAccount] = ()) -> None:
        self._accounts = {str(one.address): one for one in accounts}

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._accounts) or 'none'})"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Whose keys these are, with checksums, in the order they were given."""
        return tuple(self._accounts)

    def sign(self, sender: str, chain_id: int, nonce: int, call: Call, fees: Fees) -> SignedPair:
        """A signed EIP-1559 transaction: its hash and its raw bytes, both as 0x… text.

        Signing the same again gives the same (RFC 6979). Raises SignerError for no key of ours.
        """
        account = self._accounts.get(sender)
        if account is None:
            raise SignerError(f"there is no key for {sender}")
        asked: dict[str, Any] = {
            "type": 2,
            "chainId": chain_id,
            "nonce": nonce,
            "to": to_checksum_address(call.to),
            "value": call.value,
            "data": call.data,
            "gas": call.gas,
            "maxFeePerGas": fees.max_fee,
            "maxPriorityFeePerGas": fees.tip,
            "accessList": [],
        }
        signed = account.sign_transaction(asked)
        return f"0x{signed.hash.hex()}", f"0x{signed.raw_transaction.hex()}"


SignedPair = tuple[str, str]


def keys_from(text: str, count: int = 1) -> Keys:
    """The keys of a secret's text: a BIP-39 mnemonic, of which `count` addresses are used
    (m/44'/60'/0'/0/0 …), or private keys as hexadecimal digits, one or more. Raises SignerError.
    """
    words = text.split()
    if len(words) >= 12 and all(word.isalpha() for word in words):
        return Keys(_from_mnemonic(" ".join(words), count))
    return Keys([_account(_key_bytes(word)) for word in words])


def _from_mnemonic(mnemonic: str, count: int) -> Sequence[LocalAccount]:
    try:
        seed = seed_from_mnemonic(mnemonic, "")
    except Exception:  # the library's own text may quote the words
        raise SignerError("the mnemonic is not one of BIP-39") from None
    return [_account(key_from_seed(seed, f"{SENDER_PATH}/{index}")) for index in range(count)]


def _key_bytes(word: str) -> bytes:
    try:
        raw = bytes.fromhex(word.removeprefix("0x"))
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise SignerError("a private key is 64 hexadecimal digits; a mnemonic, at least 12 words")
    return raw


def _account(key: bytes) -> LocalAccount:
    try:
        account: LocalAccount = Account.from_key(key)
    except Exception:  # the library's own text may quote the key
        raise SignerError("the private key is not one of secp256k1") from None
    return account
