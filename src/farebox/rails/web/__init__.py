"""What every rail needs of the web: guarded sessions, bounded answers, LNURL, a circuit breaker.

Promises: an address that a caller chose is reached at public addresses only; an answer is bounded
in time and size; a place that does not answer is left alone for a while. Never: money, or the
knowledge of any one rail.
"""

from farebox.rails.web.bounded import read_bounded
from farebox.rails.web.breaker import Breaker, BreakerState
from farebox.rails.web.guard import open_guarded_session
from farebox.rails.web.lnurl import Fixed, Lnurl, PayEndpoint

__all__ = [
    "Breaker",
    "BreakerState",
    "Fixed",
    "Lnurl",
    "PayEndpoint",
    "open_guarded_session",
    "read_bounded",
]
