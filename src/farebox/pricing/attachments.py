"""What a request brings besides text: pictures it carries, and input that lies elsewhere.

A text has at most as many tokens as bytes. A picture has not, and a file named by its id, an
earlier answer or a search that the upstream runs are not in the body at all. What is not known to
be text therefore makes the input *open*: bounded by the model's own limit only.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_DEPTH_MAX: Final = 6

#: Parts whose tokens are all in the body. `content` and `output` of these are looked into.
_TEXT_TYPES: Final = frozenset(
    {
        "text",
        "input_text",
        "output_text",
        "refusal",
        "message",
        "function",
        "function_call",
        "function_call_output",
        "custom",
        "custom_tool_call",
        "custom_tool_call_output",
        "tool_use",
        "tool_result",
        "thinking",
        "redacted_thinking",
        "reasoning",
    }
)
_IMAGE_TYPES: Final = frozenset({"image", "image_url", "input_image"})
#: Keys by which an upstream is told to fetch, remember or search on its own.
_OPEN_KEYS: Final = frozenset(
    {
        "previous_response_id",
        "conversation",
        "web_search_options",
        "plugins",
        "mcp_servers",
        "container",
    }
)


class Attachments(msgspec.Struct, frozen=True):
    """images: how many. inline_bytes: their size in the body. open_input: see above."""

    images: int = 0
    inline_bytes: int = 0
    open_input: bool = False


_NONE: Final = Attachments()


def find_attachments(document: dict[str, Any]) -> Attachments:
    """Look through a decoded request body of a known protocol."""
    walk = _Walk()
    if not _OPEN_KEYS.isdisjoint(document) or isinstance(document.get("prompt"), dict):
        walk.open_input = True
    for key in ("messages", "input", "system", "tools"):
        listed = document.get(key)
        if isinstance(listed, list):
            walk.parts(listed, _DEPTH_MAX)
    if not walk.images and not walk.open_input:
        return _NONE
    return Attachments(walk.images, walk.inline_bytes, walk.open_input)


class _Walk:
    """Counts while it walks lists of messages, items, parts and tools."""

    def __init__(self) -> None:
        self.images = 0
        self.inline_bytes = 0
        self.open_input = False

    def parts(self, listed: list[Any], depth: int) -> None:
        for part in listed:
            if type(part) is dict:
                self._part(part, depth)

    def _part(self, part: dict[str, Any], depth: int) -> None:
        kind = part.get("type")
        if kind is not None and not (isinstance(kind, str) and kind in _TEXT_TYPES):
            if not isinstance(kind, str) or kind not in _IMAGE_TYPES:
                self.open_input = True
                return
            self.images += 1
            self.inline_bytes += _inline_bytes(part)
        for key in ("content", "output"):
            inner = part.get(key)
            if type(inner) is list:
                if depth == 0:
                    self.open_input = True
                else:
                    self.parts(inner, depth - 1)


def _inline_bytes(part: dict[str, Any]) -> int:
    """How much of the body is the picture itself: a data URL, or Anthropic's base64 source."""
    held = part.get("image_url", part.get("source"))
    data = held.get("url", held.get("data")) if isinstance(held, dict) else held
    if not isinstance(data, str):
        return 0
    inline = data.startswith("data:") or isinstance(part.get("source"), dict)
    # Characters, not bytes: base64 has one byte each, and anything else is counted as text.
    return len(data) if inline and data.isascii() else 0
