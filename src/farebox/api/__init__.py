"""The wallet API: create, top up, refund, look; over the ledger and the payment methods.

Promises: every answer that is not a success is a problem document that says whether money moved
and how to get it back; a call that is asked again acts once. Never: a traceback, a cached answer,
a decision about money of its own.
"""

from farebox.api.app import create_api, owns_path
from farebox.api.context import ApiContext

__all__ = ["ApiContext", "create_api", "owns_path"]
