"""Farebox against the bare machine, in one run: `python -m benchmarks.ledger`."""
