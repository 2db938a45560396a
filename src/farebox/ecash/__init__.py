"""The eCash wallet: what to swap, mint or melt, and how to find out what became of it.

Promises: what must be stored before a call is one plan, and from that plan alone each call can be
repeated or asked about; no answer of a mint is believed before its signatures are checked; a
time-out is never read as a failure.
Never: storage, an HTTP library, a clock; handing out output counters; moving money in a ledger.
"""
