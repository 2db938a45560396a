"""Counting tokens ourselves, for upstreams that report none.

With a tokenizer whose data is already on this machine the count is exact for the models that use
it and close for others. Without one it is an estimate of a token per four bytes of UTF-8, rounded
up: the usual figure for English, below the truth for code and for scripts of several bytes a
letter, so that who pays by estimate is rarely charged too much. Receipts say which it was.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

BYTES_PER_TOKEN: Final = 4
_PIECE_CHARS: Final = 4_096

#: Where tiktoken would fetch each encoding, and what its file must hash to.
_ENCODINGS: Final = {
    "o200k_base": (
        "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": (
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}


class TokenCounter(Protocol):
    """Counts the tokens of a text."""

    @property
    def is_estimate(self) -> bool:
        """Whether `count` guesses."""
        ...

    def count(self, text: str) -> int:
        """How many tokens `text` has, at least 0."""
        ...


class EstimatingCounter:
    """A token for each four bytes of UTF-8, rounded up."""

    is_estimate = True

    def count(self, text: str) -> int:
        """Zero for no text, else at least one."""
        return -(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN)


class TiktokenCounter:
    """Counts with one of tiktoken's encodings."""

    is_estimate = False

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    def count(self, text: str) -> int:
        """Special tokens are counted as the ordinary text they were sent as.

        Piece by piece: one long run of a letter would take the tokenizer quadratic time.
        """
        pieces = (text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS))
        return sum(len(self._encoding.encode_ordinary(piece)) for piece in pieces)


def local_tokenizer() -> TokenCounter:
    """The best counter that needs no network. Takes about a second where a tokenizer is loaded.

    tiktoken fetches its data when it is missing or damaged, and a payment must not hang on
    somebody's file server: it is only touched where its file is there and whole.
    """
    try:
        import tiktoken
    except ImportError:
        return EstimatingCounter()
    for name, (address, digest) in _ENCODINGS.items():
        if _is_cached(address, digest):
            return TiktokenCounter(tiktoken.get_encoding(name))
    return EstimatingCounter()


def prompt_texts(document: object, depth: int = 8) -> Iterator[str]:
    """The texts a model reads from a decoded request: messages, prompts, input, tools.

    Attached data (pictures, audio, files) is left out; it is no text.
    """
    if isinstance(document, dict):
        listed = (document.get(key) for key in ("system", "instructions", "messages", "prompt"))
        for part in (*listed, document.get("input"), document.get("tools")):
            yield from _texts(part, depth)


def prompt_token_ids(document: object) -> int:
    """How many tokens a decoded request names by their numbers, in one list or in several."""
    if not isinstance(document, dict):
        return 0
    listed = [document[key] for key in ("prompt", "input") if isinstance(document.get(key), list)]
    listed += [inner for ids in listed for inner in ids if isinstance(inner, list)]
    return sum(type(number) is int for ids in listed for number in ids)


_SKIPPED_KEYS: Final = frozenset(
    {"type", "role", "id", "call_id", "tool_call_id", "tool_use_id", "cache_control"}
    | {"image_url", "source", "input_audio", "file", "file_data", "image", "audio"}
)


def _texts(part: object, depth: int) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif depth > 0 and isinstance(part, list):
        for inner in part:
            yield from _texts(inner, depth - 1)
    elif depth > 0 and isinstance(part, dict):
        for key, inner in part.items():
            if key not in _SKIPPED_KEYS:
                yield from _texts(inner, depth - 1)


def _is_cached(address: str, digest: str) -> bool:
    """Look where tiktoken itself looks, which is told by variables of its own."""
    default = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    if not folder:
        return False
    file = Path(folder) / hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == digest
    except OSError:
        return False
