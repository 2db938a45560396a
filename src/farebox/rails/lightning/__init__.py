"""Lightning: deposits by invoice, payments to invoices, Lightning addresses and LNURLs.

Promises: an invoice credits once, by its payment hash, the account it was made for; a payment's
hash is stored before the call and one operation's alone; fee, network, amount and description are
checked before a unit leaves; a node that is down degrades itself only.
Never: a guess about a payment in flight; a credit for holding an invoice or a preimage; a
macaroon, rune or key in an error or a log.
"""

from farebox.rails.lightning.cln import Cln
from farebox.rails.lightning.config import LightningConfig
from farebox.rails.lightning.lnbits import Lnbits
from farebox.rails.lightning.lnd import Lnd
from farebox.rails.lightning.method import LightningMethod, fault_of
from farebox.rails.lightning.node import LightningNode
from farebox.rails.lightning.paying import OUTGOING
from farebox.rails.lightning.transport import Line, open_node_session

RECORDS = (OUTGOING,)

__all__ = [
    "OUTGOING",
    "RECORDS",
    "Cln",
    "LightningConfig",
    "LightningMethod",
    "LightningNode",
    "Line",
    "Lnbits",
    "Lnd",
    "fault_of",
    "open_node_session",
]
