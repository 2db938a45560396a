"""For programs that pay a Farebox elsewhere.

Promises: what is asked for twice, because an answer was lost, happens once; an answer is bounded in
time and size and checked before it is believed. Never: a server, a book of the house's, a key that
signs vouchers.
"""

from farebox.client.channels import RemoteLedgerContract

__all__ = ["RemoteLedgerContract"]
