"""What comes in and what goes out, free of any framework."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from farebox.api.problems import bad_request
from farebox.ids import derived_id
from farebox.paywall.model import Answer, Headers

T = TypeVar("T", bound=msgspec.Struct)

NO_STORE = (b"cache-control", b"no-store")


@dataclass(frozen=True, slots=True)
class Incoming:
    """One request. `endpoint` is its name whichever alias was called."""

    method: str
    endpoint: str
    headers: Headers = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    address: str
    path: Mapping[str, str]

    def header(self, name: bytes) -> str | None:
        """The first header of this (lower-case) name, as text."""
        found = next((value for known, value in self.headers if known.lower() == name), None)
        return None if found is None else found.decode("latin-1")

    @property
    def fingerprint(self) -> bytes:
        """The same for the same request under any alias, and for no other."""
        query = msgspec.json.encode(sorted(self.query.items()))
        return derived_id("fp", self.method, self.endpoint, query, self.body).encode()


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer whose body is made as it leaves."""

    headers: Headers
    body: AsyncIterator[bytes]


def document(body: Mapping[str, Any], status: int = 200, headers: Headers = ()) -> Answer:
    """A JSON answer that no cache keeps."""
    described = ((b"content-type", b"application/json"), NO_STORE, *headers)
    return Answer(status, described, msgspec.json.encode(body))


def read_json(incoming: Incoming, shape: type[T]) -> T | Answer:
    """The body as `shape`; an empty one has every default."""
    try:
        return msgspec.json.decode(incoming.body or b"{}", type=shape)
    except msgspec.ValidationError as error:
        return bad_request("body_invalid", f"The body is not as documented: {error}.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return bad_request("body_malformed", "The body is not JSON in UTF-8.")
