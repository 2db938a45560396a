"""Pure codecs: bytes and text in, frozen typed values out.

Promises: each decoder is strict and bounded, and raises nothing but `InvalidCredential`.
Never: I/O, time, storage, a network or web library.
"""
