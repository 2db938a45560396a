"""One request and one proof of payment in; admit, challenge or refuse out; settled exactly after.

Promises: the hold is in the books before a byte goes upstream; what was not used goes back; the
same credential again answers with the same request. Never: a request without a price, a charge
above its quote, two kinds of payment taken for one request.
"""
