"""SubRAV payment channels on the wire, byte for byte as the npm package payment-kit 0.7.0 has them.

Promises: what is read is complete and within bounds, or refused with `InvalidCredential`; what is
written is what payment-kit writes. `model` has the nouns, `bcs` what is signed, `keys` the three
kinds of signature, `header`, `frames`, `didauth`, `documents` and `mcp` where they travel.
Never: I/O, a clock, a decision about which voucher is acceptable.
"""
