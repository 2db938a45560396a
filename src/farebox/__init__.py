"""Farebox: any HTTP service, paid per request, with exact change.

Promises: money is exact integers on one double-entry ledger; nothing is lost whatever stops.
Never: floats near money, an effect outside the process that was not journalled first.
"""

__version__ = "0.1.0"
