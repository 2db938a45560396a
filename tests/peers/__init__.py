"""Real foreign software that tests talk to over loopback, in processes that the tests start.

Promises: each peer lives in an environment of its own under `.peers/`, pinned and hashed; a peer
that cannot be had skips its tests with the reason, or fails them where FAREBOX_REQUIRE_PEERS=1.
Never: imported by the package, or by the test process itself.
"""
