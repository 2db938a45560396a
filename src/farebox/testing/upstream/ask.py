"""What a request asks for: how many words, streamed or not, and what is to go wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import msgspec

from farebox.errors import InvalidInput

DEFAULT_WORDS = 20
WORDS_MAX = 100_000
CHOICES_MAX = 16
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_PROMPT_FIELDS = ("messages", "prompt", "input", "system", "instructions")
_SAYING = "money is a promise kept in whole numbers and change is the promise kept twice"
_DEPTH_MAX = 16


class Play(msgspec.Struct, frozen=True, kw_only=True):
    """What is to go wrong, as `x-play: status=500` or `x-play: cut=3, nousage` say it.

    The same text may stand in the body's member `x-play`. Chunks are those that carry words.
    """

    status: int | None = None  # answer with this status and an error document
    drop: bool = False  # break the connection before anything is answered
    garbage: bool = False  # answer 200 with what is no JSON
    slow: float = 0  # seconds before the answer, and before every chunk of a stream
    cut: int | None = None  # break the connection after so many chunks, or in mid-answer
    error: int | None = None  # after so many chunks the stream goes on with an error
    nousage: bool = False  # report no usage, even when asked
    lie: int | None = None  # report this many output tokens
    cached: int = 0  # report so many of the input tokens as cached
    reasoning: int = 0  # report so many output tokens on top, for reasoning


def read_play(text: str) -> Play:
    """Read `name=value` and `name` parts between commas. Raises InvalidInput."""
    parts = dict(part.strip().partition("=")[::2] for part in text.split(",") if part.strip())
    given = {name: value or "true" for name, value in parts.items()}
    unknown = given.keys() - set(Play.__struct_fields__)
    if unknown:
        raise InvalidInput(f"x-play knows no {min(unknown)!r}")
    try:
        return msgspec.convert(given, Play, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"x-play: {error}") from None


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, read. Every word is one token; `capped` says that the caller set the limit."""

    body: Mapping[str, Any]
    play: Play
    words: tuple[str, ...]
    capped: bool
    prompt_tokens: int

    @property
    def model(self) -> str:
        """The model asked for, whatever it is."""
        return str(self.body.get("model", "play-1"))

    @property
    def stream(self) -> bool:
        """Whether the answer is to be streamed."""
        return self.body.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage (`stream_options.include_usage`)."""
        options = self.body.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        n = self.body.get("n")
        return min(max(n, 1), CHOICES_MAX) if isinstance(n, int) else 1

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)

    @property
    def pieces(self) -> tuple[str, ...]:
        """The answer in pieces that join to it: each word with the space before it."""
        return tuple(word if at == 0 else f" {word}" for at, word in enumerate(self.words))

    @property
    def output_tokens(self) -> int:
        """What is reported: the truth, unless a lie was ordered."""
        if self.play.lie is not None:
            return self.play.lie
        return len(self.words) * self.choices + self.play.reasoning


def read_ask(raw: bytes, header: str | None) -> Ask:
    """Read a request's body and its `x-play` header. Raises InvalidInput."""
    try:
        body = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise InvalidInput("the body is no JSON object") from None
    order = header if header is not None else body.get("x-play")
    play = read_play(order) if isinstance(order, str) else Play()
    limits = (body.get(name) for name in _LIMITS)
    limit = next((given for given in limits if isinstance(given, int)), None)
    count = DEFAULT_WORDS if limit is None else min(max(limit, 1), WORDS_MAX)
    words = tuple(islice(cycle(_SAYING.split()), count))
    prompt = sum(_count_words(body.get(name), 0) for name in _PROMPT_FIELDS)
    return Ask(body, play, words, limit is not None, prompt)


def _count_words(part: object, depth: int) -> int:
    """The words of all texts in a prompt; roles and types are no text."""
    return sum(len(text.split()) for text in _texts(part, depth))


def _texts(part: object, depth: int) -> Iterator[str]:
    if depth > _DEPTH_MAX:
        return
    match part:
        case str():
            yield part
        case list():
            for item in part:
                yield from _texts(item, depth + 1)
        case dict():
            for name in ("content", "text"):
                yield from _texts(part.get(name), depth + 1)
        case _:
            return
