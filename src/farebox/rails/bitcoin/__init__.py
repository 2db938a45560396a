"""Bitcoin on the chain: deposits to fresh addresses, payments out in batches.

Promises: an output credits once, by its outpoint, the account its address was given to, when it is
as deep as its value needs; what a reorganisation takes is taken back; a payment is signed and
stored, its inputs reserved, before it is sent; any of its tries may win; custody is what the wallet
holds less what is on its way.
Never: a credit for what is unconfirmed; an address given out twice; a key in an error or a log.
"""

from farebox.rails.bitcoin.config import BitcoinConfig, Depth
from farebox.rails.bitcoin.records import RECORDS

__all__ = ["RECORDS", "BitcoinConfig", "Depth"]
