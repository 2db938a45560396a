"""EVM chains: deposits and payouts of tokens and of the chain's coin.

Promises: what arrives is credited once, a nonce is used once, and every transaction is followed to
its end; what would cost more than the cap waits. Never: a key or a node's address in an error or a
log.
"""
