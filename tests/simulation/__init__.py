"""The whole house on a simulated clock, network, disk, mint and upstream, driven by one seed.

Promises: one seed is one story, to the last bit, on every machine; after every commit the two
promises are checked; what breaks is told with the seed that breaks it. Never: a socket, a thread,
the real clock, real randomness.
"""
