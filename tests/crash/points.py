"""Where a process is to die: before or after the n-th of something since it was armed."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping

import msgspec


class Kind(enum.StrEnum):
    """What is counted."""

    COMMIT = "commit"  # a unit given to the store
    MINT = "mint"  # an HTTP call to a mint
    NODE = "node"  # a call that makes an invoice, pays one or asks about it, or sends to a chain
    ANSWER = "answer"  # an ASGI message on its way to a client


class Point(msgspec.Struct, frozen=True):
    """`after` a call to a mint or node: it was executed there, and nobody has heard the answer.

    With `drops` the process lives and only the client's connection breaks.
    """

    kind: Kind
    number: int
    after: bool
    drops: bool = False

    def __str__(self) -> str:
        when = "drop" if self.drops else "after" if self.after else "before"
        return f"{self.kind}-{when}-{self.number}"


def read_point(text: str) -> Point:
    """The point that `str` wrote."""
    kind, when, number = text.split("-")
    return Point(Kind(kind), int(number), when == "after", when == "drop")


def points(counts: Mapping[Kind, int]) -> Iterator[Point]:
    """Every point of a run that counted so many of each kind."""
    for kind, count in counts.items():
        for number in range(1, count + 1):
            yield Point(kind, number, after=False)
            yield Point(kind, number, after=True)
            if kind is Kind.ANSWER:
                yield Point(kind, number, after=False, drops=True)
