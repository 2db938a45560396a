"""Cashu on the wire: tokens, payment requests, keysets and the cryptography beneath them.

Promises: a decoded value is complete and within bounds; an error never shows a token; secrets and
signatures are hidden from every repr.
Never: I/O, storage, a decision about which mint, amount or lock is acceptable.
"""
