"""Cashu mints over HTTP.

Promises: an answer is either what the specification says it is, or RailUnavailable; a mint that
is down fails fast and harms no other; nothing of a token reaches an error or a log.
Never: a second attempt at a call that moves value; the wallet decides that, after asking.
"""

from farebox.rails.cashu.breaker import Breaker
from farebox.rails.cashu.http_mint import HttpMint, MintLimits, open_session

__all__ = ["Breaker", "HttpMint", "MintLimits", "open_session"]
