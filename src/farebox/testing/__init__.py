"""Play things: a mint of play money and a model-like upstream, for the demo and for tests.

Promises: they speak the real protocols to the byte, refuse what the real ones refuse, and fail
exactly when and how they are told to.
Never: real money, a foreign network, a part in production; nothing outside imports from here but
the demo and the tests.
"""
