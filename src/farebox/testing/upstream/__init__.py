"""A model-like upstream: OpenAI's and Anthropic's protocols with words of its own.

Promises: the official clients read its answers; one word is one token and one chunk, so that what
an answer must cost is known beforehand; it fails as the header `x-play` says.
Never: wit, a network, randomness.
"""

from farebox.testing.upstream.app import PlayUpstream, Seen
from farebox.testing.upstream.ask import DEFAULT_WORDS, Play

__all__ = ["DEFAULT_WORDS", "Play", "PlayUpstream", "Seen"]
