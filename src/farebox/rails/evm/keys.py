"""The rail's signer: the private keys of our senders and, where they are here too, of the deposit
addresses. They leave this module for nobody.

Promises: what is signed is a whole transaction or authorisation of one of our own addresses.
Never: a key in a repr, an error or a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from eth_utils.address import to_checksum_address

from farebox.errors import InvalidCredential, SignerError
from farebox.rails.evm.accounts import Account, LocalAccount, key_from_seed, seed_from_mnemonic
from farebox.rails.evm.fees import Fees
from farebox.rails.evm.outbox import Call
from farebox.wire.bip32 import HARDENED, ExtendedKey, master_key, read_extended_key

#: BIP-44 for Ethereum; the last part counts addresses.
SENDER_PATH = "m/44'/60'/0'/0"


#: The account of a mnemonic's deposit addresses: m/44'/60'/1'/0.
_DEPOSIT_STEPS = (44 + HARDENED, 60 + HARDENED, 1 + HARDENED, 0)


class Keys:
    """Signs for the senders that it was given keys of, and for the addresses of a deposit tree."""

    def __init__(
        self, accounts: Iterable[LocalAccount] = (), tree: ExtendedKey | None = None
    ) -> None:
        self._accounts = {str(one.address): one for one in accounts}
        self._tree = tree
        self._learned: dict[str, LocalAccount] = {}

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._accounts) or 'none'})"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Whose keys these are, with checksums, in the order they were given."""
        return tuple(self._accounts)

    @property
    def can_sweep(self) -> bool:
        """Whether what lies at deposit addresses can be moved from here."""
        return self._tree is not None and bool(self._tree.secret)

    def learn(self, address: str, index: int) -> None:
        """Be ready to sign for a deposit address with this number. Raises SignerError."""
        if address in self._learned:
            return
        if self._tree is None or not self._tree.secret:
            raise SignerError("the private keys of deposit addresses are not here")
        account = _account(self._tree.child(index).secret)
        if account.address != address:
            raise SignerError(f"{address} is of another extended key")
        self._learned[address] = account

    def sign(self, sender: str, chain_id: int, nonce: int, call: Call, fees: Fees) -> SignedPair:
        """A signed EIP-1559 transaction: its hash and its raw bytes, both as 0x… text.

        Signing the same again gives the same (RFC 6979). Raises SignerError for no key of ours.
        """
        account = self._accounts.get(sender) or self._learned.get(sender)
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


def keys_from(text: str, count: int = 1, deposits: str = "") -> Keys:
    """The keys of a secret's text: a BIP-39 mnemonic, of which `count` addresses are used
    (m/44'/60'/0'/0/0 …), or private keys as hexadecimal digits, one or more; and those of the
    deposit addresses, from what `deposit_key` reads. Raises SignerError.
    """
    words, tree = text.split(), deposit_key(deposits) if deposits else None
    if len(words) >= 12 and all(word.isalpha() for word in words):
        return Keys(_from_mnemonic(" ".join(words), count), tree)
    if not words:
        raise SignerError("a private key is needed, or a mnemonic")
    return Keys([_account(_key_bytes(word)) for word in words], tree)


def deposit_key(text: str) -> ExtendedKey:
    """The extended key of the deposit addresses: `xpub…` or `xprv…` as it stands, of a BIP-39
    mnemonic the one at m/44'/60'/1'/0. Raises SignerError."""
    words = text.split()
    if len(words) == 1:
        try:
            return read_extended_key(words[0])
        except InvalidCredential as error:
            raise SignerError(str(error)) from None
    key = master_key(_seed(" ".join(words)))
    for step in _DEPOSIT_STEPS:
        key = key.child(step)
    return key


def _seed(mnemonic: str) -> bytes:
    try:
        return seed_from_mnemonic(mnemonic, "")
    except Exception:  # the library's own text may quote the words
        raise SignerError("the mnemonic is not one of BIP-39") from None


def _from_mnemonic(mnemonic: str, count: int) -> Sequence[LocalAccount]:
    seed = _seed(mnemonic)
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
