"""Pricing: what a request may cost before it runs, and what it did cost after.

Promises: prices, rates and charges are exact rationals; a charge is rounded once, up to a whole
msat, at its end; it never exceeds the maximum that was quoted, whatever an upstream reports; a
quote carries its own terms, so that it is honoured when prices and rates have moved on; what has
no price is refused, never free.
Never: a float, a network call (a rate comes through a port), a decision about who pays or how.

The way through: `request` reads the facts of a request, `book` quotes it, `stream` and `usage`
measure the answer, `book.charge` says what it costs. `model` and `terms` are what prices are made
of, `parse` how operators write them, `models` how upstreams publish them, `rates` what they are
worth.
"""
