"""Durable storage: the only SQL of the house.

Promises: a unit told as applied survives power loss; a batch is stored whole or not at all.
Never: a rule about money (`farebox.ledger` decides), a foreign network.
"""
