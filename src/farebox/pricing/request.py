"""What a request says that bears on its price: protocol, model, limits, and how large it is.

Whoever prices a request and whoever serves it must read it alike, or a caller pays for the cheap
model and gets the dear one. So a request that two readers could read differently (a key twice, a
key in other capitals, a path with dot segments) carries a problem, and is not priced.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from farebox.pricing.attachments import Attachments, find_attachments

PATH_MAX_CHARS: Final = 2_048
MODEL_MAX_CHARS: Final = 256
BODY_MAX_BYTES: Final = 64 * 1024 * 1024
#: More answers or tokens than this are no honest limit.
_CHOICES_MAX: Final = 10_000
_TOKENS_MAX: Final = 10**9


class ApiProtocol(enum.StrEnum):
    """The protocols whose usage is understood."""

    CHAT = "openai.chat"
    COMPLETIONS = "openai.completions"
    RESPONSES = "openai.responses"
    EMBEDDINGS = "openai.embeddings"
    MESSAGES = "anthropic.messages"
    OTHER = "other"


class Problem(enum.StrEnum):
    """Why a request cannot be read for pricing. The value says it in words."""

    PATH_AMBIGUOUS = "the path can be read in more than one way"
    PATH_TOO_LONG = "the path is too long"
    BODY_TOO_LARGE = "the body is too large to be read"
    BODY_NOT_JSON = "the body is not a JSON object"
    BODY_AMBIGUOUS = "the body has a key twice, or in unusual capitals"
    MODELS_MANY = "the body names other models to fall back to"
    FIELD_INVALID = "model, stream or a limit has a value of the wrong kind or size"


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is priced.

    path: decoded, slashes collapsed, without a trailing one.
    max_output_tokens: the caller's limit for one choice; None where none was set.
    choices: how many answers of that length it asks for.
    asks_usage: whether the caller itself asked for usage in a stream.
    text_bytes: size of the body without what is attached; no text has more tokens than bytes.
    images: attached pictures. open_input: whether input comes from elsewhere, too (files,
    earlier answers, tools run by the upstream), so that the body does not bound it.
    """

    method: str
    path: str
    protocol: ApiProtocol = ApiProtocol.OTHER
    model: str | None = None
    stream: bool = False
    asks_usage: bool = False
    max_output_tokens: int | None = None
    choices: int = 1
    text_bytes: int = 0
    images: int = 0
    open_input: bool = False
    problem: Problem | None = None

    @property
    def is_readable(self) -> bool:
        """Whether it may be priced. A body that is no JSON is fine where none was expected."""
        if self.problem is None:
            return True
        return self.protocol is ApiProtocol.OTHER and self.problem is Problem.BODY_NOT_JSON


class UpstreamBody(msgspec.Struct, frozen=True):
    """What to send upstream, and whether a usage-only chunk must be kept from the caller."""

    body: bytes
    strip_usage_chunk: bool


#: Only the limits that the protocol's servers obey: another one would shrink the quote alone.
_LIMITS: Final[Mapping[ApiProtocol, tuple[str, ...]]] = {
    ApiProtocol.CHAT: ("max_tokens", "max_completion_tokens"),
    ApiProtocol.COMPLETIONS: ("max_tokens",),
    ApiProtocol.RESPONSES: ("max_output_tokens",),
    ApiProtocol.MESSAGES: ("max_tokens",),
}
_ENDINGS: Final = (
    ("/chat/completions", ApiProtocol.CHAT),
    ("/completions", ApiProtocol.COMPLETIONS),
    ("/responses", ApiProtocol.RESPONSES),
    ("/embeddings", ApiProtocol.EMBEDDINGS),
    ("/v1/messages", ApiProtocol.MESSAGES),
)
_KEYS: Final = (
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "prompt",
    "messages",
    "input",
)
_KEY_SET: Final = frozenset(_KEYS)
#: By these OpenRouter and LiteLLM are told to serve another model than the one that is priced.
_FALLBACKS: Final = frozenset(
    {"models", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks"}
)
_QUOTED_KEYS: Final = tuple(f'"{key}"'.encode() for key in _KEYS)
#: A printable ASCII character written as an escape: it could hide a second "model".
_ESCAPED_ASCII: Final = re.compile(rb"\\u00[2-7]")
_DOT_SEGMENT: Final = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")
_SLASHES: Final = re.compile(r"/{2,}")

_decode = msgspec.json.Decoder().decode


def read_request(method: str, path: str, body: bytes | None) -> RequestFacts:
    """Read the facts of a request. Never raises: what cannot be read is its `problem`.

    `path` is as the caller sent it, without the query. `body` is None where it was not read
    because no price there depends on it.
    """
    canonical = _canonical_path(path)
    if isinstance(canonical, Problem):
        return RequestFacts(method=method, path=path[:PATH_MAX_CHARS], problem=canonical)
    protocol = find_protocol(method, canonical)
    if not body:
        expected = body is not None and protocol is not ApiProtocol.OTHER
        problem = Problem.BODY_NOT_JSON if expected else None
        return RequestFacts(method=method, path=canonical, protocol=protocol, problem=problem)
    document = _read_body(body)
    if isinstance(document, Problem):
        return RequestFacts(
            method=method,
            path=canonical,
            protocol=protocol,
            text_bytes=len(body),
            problem=document,
        )
    return _facts(method, canonical, protocol, document, len(body))


def find_protocol(method: str, path: str) -> ApiProtocol:
    """The protocol spoken at a canonical path, whatever prefix the service is mounted under."""
    if method != "POST":
        return ApiProtocol.OTHER
    return next((found for ending, found in _ENDINGS if path.endswith(ending)), ApiProtocol.OTHER)


def ask_for_usage(facts: RequestFacts, body: bytes) -> UpstreamBody:
    """The body to send upstream, so that a stream ends with its usage.

    Only OpenAI's chat and completions must be asked (`stream_options.include_usage`); the others
    report by themselves. The usage then comes in a chunk without choices, which clients that
    did not ask for it trip over (they read `choices[0]`): it is to be stripped. Everything else
    in the body stays as the caller wrote it, byte by byte where possible.
    """
    speaks = facts.protocol is ApiProtocol.CHAT or facts.protocol is ApiProtocol.COMPLETIONS
    if not speaks or not facts.stream or facts.asks_usage or facts.problem is not None:
        return UpstreamBody(body, False)
    if b'"stream_options"' not in body and not _ESCAPED_ASCII.search(body):
        start = body.index(b"{") + 1
        asked = b'"stream_options":{"include_usage":true},'
        return UpstreamBody(body[:start] + asked + body[start:], True)
    members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    options = _decode(members.get("stream_options", msgspec.Raw(b"null"))) or {}
    members["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": True}))
    return UpstreamBody(msgspec.json.encode(members), True)


def _canonical_path(path: str) -> str | Problem:
    """One path for all spellings of it, so that no spelling slips past its rule."""
    if len(path) > PATH_MAX_CHARS:
        return Problem.PATH_TOO_LONG
    if "%" in path:
        path = unquote(path, errors="replace")
    # A percent sign that is left was escaped twice; a backslash is a slash to some servers.
    if "%" in path or "\\" in path or not path.startswith("/") or not path.isprintable():
        return Problem.PATH_AMBIGUOUS
    if ";" in path or "?" in path or "#" in path or _DOT_SEGMENT.search(path):
        return Problem.PATH_AMBIGUOUS
    if "//" in path:
        path = _SLASHES.sub("/", path)
    return path.rstrip("/") or "/"


def _read_body(body: bytes) -> dict[str, Any] | Problem:
    if len(body) > BODY_MAX_BYTES:
        return Problem.BODY_TOO_LARGE
    try:
        document = _decode(body)
        if type(document) is not dict:
            return Problem.BODY_NOT_JSON
        if _repeats_key(body, document):
            return Problem.BODY_AMBIGUOUS
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Problem.BODY_NOT_JSON
    for key in document:
        # Go's decoder, for one, takes "Model" for "model".
        if key not in _KEY_SET and key.casefold() in _KEY_SET:
            return Problem.BODY_AMBIGUOUS
    return document


def _repeats_key(body: bytes, document: dict[str, Any]) -> bool:
    """Whether a key that bears on the price stands there twice, or is written with escapes.

    Decoders keep one of two equal keys and say nothing. What they have not kept tells.
    """
    # Each key that is there is written at least once, unless with escapes.
    is_plain = sum(map(body.count, _QUOTED_KEYS)) <= len(_KEY_SET & document.keys())
    if is_plain and not (b"\\u00" in body and _ESCAPED_ASCII.search(body)):
        return False
    kept = b"\n".join(msgspec.json.decode(body, type=dict[str, msgspec.Raw]).values())
    for key, quoted in zip(_KEYS, _QUOTED_KEYS, strict=True):
        if body.count(quoted) - kept.count(quoted) > (key in document):
            return True
    return len(_ESCAPED_ASCII.findall(body)) > len(_ESCAPED_ASCII.findall(kept))


def _facts(
    method: str, path: str, protocol: ApiProtocol, document: dict[str, Any], body_bytes: int
) -> RequestFacts:
    model, stream = document.get("model"), document.get("stream")
    limits = [_count(document.get(key), _TOKENS_MAX) for key in _LIMITS.get(protocol, ())]
    choices = _choices(protocol, document)
    asks_usage = _asks_usage(document.get("stream_options"))
    # Models are remembered with their prices: one of any length would fill the memory.
    misnamed = model is not None and (not isinstance(model, str) or len(model) > MODEL_MAX_CHARS)
    invalid = (
        misnamed
        or (stream is not None and not isinstance(stream, bool))
        or asks_usage is None
        or choices is None
        or -1 in limits
    )
    many = False
    if protocol is ApiProtocol.OTHER:
        attached = Attachments()
        invalid = misnamed
    else:
        attached = find_attachments(document)
        many = any(document.get(key) for key in _FALLBACKS & document.keys())
    # Some servers take zero for no limit at all.
    given = [limit for limit in limits if limit]
    return RequestFacts(
        method=method,
        path=path,
        protocol=protocol,
        model=None if invalid else model,
        stream=stream is True,
        asks_usage=asks_usage is True,
        max_output_tokens=max(given) if given and not invalid else None,
        choices=choices or 1,
        text_bytes=max(body_bytes - attached.inline_bytes, 0),
        images=attached.images,
        open_input=attached.open_input,
        problem=Problem.FIELD_INVALID if invalid else Problem.MODELS_MANY if many else None,
    )


def _count(value: object, most: int) -> int | None:
    """A limit; None where it is absent, -1 where it is no limit."""
    if value is None:
        return None
    return value if type(value) is int and 0 <= value <= most else -1


def _choices(protocol: ApiProtocol, document: dict[str, Any]) -> int | None:
    """How many answers are generated: the upstream bills those that `best_of` drops, too."""
    if protocol not in (ApiProtocol.CHAT, ApiProtocol.COMPLETIONS):
        return 1
    wanted = [_count(document.get(key), _CHOICES_MAX) for key in ("n", "best_of")]
    if -1 in wanted:
        return None
    choices = max([1, *(count for count in wanted if count is not None)])
    prompt = document.get("prompt")
    if protocol is ApiProtocol.COMPLETIONS and isinstance(prompt, list) and prompt:
        choices *= 1 if isinstance(prompt[0], int) else len(prompt)
    return choices


def _asks_usage(options: object) -> bool | None:
    if options is None:
        return False
    return options.get("include_usage") is True if isinstance(options, dict) else None
