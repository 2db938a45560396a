"""The foreign networks: one package per rail, each behind a port of the room that needs it.

Promises: what a foreign network answered is checked and typed before it leaves its package, and
its errors are mapped to RailRejected or RailUnavailable there.
Never: one rail importing another, a posting, a decision about a customer.
"""
