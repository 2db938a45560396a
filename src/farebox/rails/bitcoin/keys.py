"""Keys of the wallet, behind the one type that may hold them: never shown, never logged."""

from __future__ import annotations

import bdkpython as bdk

from farebox.errors import InvalidInput
from farebox.rails.bitcoin.chain import GENESIS

_WORDS = (12, 15, 18, 21, 24)
_BRANCHES = "/<0;1>/*"


class WalletKeys:
    """A descriptor for addresses that are given out and one for change.

    `text` is a mnemonic (BIP-39; addresses by BIP-84), a descriptor with `/<0;1>/*`, or an extended
    public key. With private keys in it the wallet signs by itself, else it only watches.
    Raises InvalidInput, which quotes nothing of it.
    """

    def __init__(self, text: str, network: str) -> None:
        if network not in GENESIS:
            raise InvalidInput(f"the network is one of {', '.join(GENESIS)}")
        self.network_name = network
        self.network = bdk.Network[network.upper()]
        kind = bdk.NetworkKind.MAIN if network == "bitcoin" else bdk.NetworkKind.TEST
        text = text.strip()
        try:
            if len(text.split()) in _WORDS:
                self.external, self.change = _by_words(text, kind)
            else:
                self.external, self.change = _by_descriptor(text, kind)
        except (bdk.Bip39Error, bdk.DescriptorError, bdk.DescriptorKeyError, bdk.Bip32Error):
            raise InvalidInput(
                "the wallet's key is a mnemonic, a descriptor that ends in /<0;1>/*, or an "
                "extended public key (xpub…, tpub…), for its network"
            ) from None
        public = str(self.external.as_public())
        self.can_sign = self.external.to_string_with_secret() != public
        self.checksum = public.partition("#")[2]

    def __repr__(self) -> str:
        return f"WalletKeys({self.checksum})"

    def address(self, index: int) -> str:
        """The address at a place."""
        return str(self.external.derive_address(index, self.network))


def _by_words(text: str, kind: bdk.NetworkKind) -> tuple[bdk.Descriptor, bdk.Descriptor]:
    root = bdk.DescriptorSecretKey(kind, bdk.Mnemonic.from_string(text), None)
    keychains = (bdk.KeychainKind.EXTERNAL, bdk.KeychainKind.INTERNAL)
    external, change = (bdk.Descriptor.new_bip84(root, one, kind) for one in keychains)
    return external, change


def _by_descriptor(text: str, kind: bdk.NetworkKind) -> tuple[bdk.Descriptor, bdk.Descriptor]:
    if "(" not in text:
        text = f"wpkh({text}{_BRANCHES})"
    whole = bdk.Descriptor(text, kind)
    if not whole.is_multipath() or not whole.has_wildcard():
        raise InvalidInput("the wallet's descriptor has to end in /<0;1>/*: addresses and change")
    external, change = whole.to_single_descriptors()
    return external, change
