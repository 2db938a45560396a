"""What the gateway itself has to say, each with its own stable code."""

from __future__ import annotations

from farebox.paywall.dialects import Problem, problem
from farebox.paywall.model import Answer

_RELEASED = "Nothing was charged; what was held or taken for the request goes back."


def body_too_large(bytes_max: int) -> Answer:
    """413."""
    return problem(
        Problem(
            413,
            "body_too_large",
            "Body too large",
            f"The request body is longer than {bytes_max} bytes.",
        )
    )


def body_too_slow() -> Answer:
    """408."""
    return problem(
        Problem(408, "body_too_slow", "Body too slow", "The request body did not arrive in time.")
    )


def headers_too_large(bytes_max: int) -> Answer:
    """431."""
    return problem(
        Problem(
            431,
            "headers_too_large",
            "Headers too large",
            f"The request headers together are longer than {bytes_max} bytes.",
        )
    )


def busy() -> Answer:
    """503, before money moves."""
    return problem(
        Problem(
            503,
            "busy",
            "Busy",
            "As many requests are served as can be; try again.",
            headers=((b"retry-after", b"1"),),
        )
    )


def stopping(*, held: bool = False) -> Answer:
    """503 while the process stops."""
    return problem(
        Problem(
            503,
            "stopping",
            "Stopping",
            "The gateway is being stopped; try again.",
            _RELEASED if held else "No money moved.",
            headers=((b"retry-after", b"5"), (b"connection", b"close")),
        )
    )


def not_open() -> Answer:
    """503 while the book is closed after a restore."""
    return problem(
        Problem(
            503,
            "book_closed",
            "Closed",
            "The books are being put in order after a restore; nothing is taken meanwhile.",
            "No money moved. A token that was sent along is untouched.",
            headers=((b"retry-after", b"60"),),
        )
    )


def books_closed(*, held: bool) -> Answer:
    """503: the store does not take it."""
    return problem(
        Problem(
            503,
            "store_unavailable",
            "Books unavailable",
            "The books cannot be written right now; try again.",
            "What was taken or held is settled as soon as the books can be written."
            if held
            else "Nothing was held. A token that was sent along is spent only if the next answer "
            "to it says so.",
            headers=((b"retry-after", b"5"),),
        )
    )


def upstream_unreachable() -> Answer:
    """502: no upstream took the request, or the one that did broke off without an answer."""
    return problem(
        Problem(
            502,
            "upstream_unreachable",
            "Upstream unreachable",
            "The service behind this gateway did not answer.",
            _RELEASED,
        )
    )


def upstream_failed() -> Answer:
    """500: the user's own app raised an exception."""
    return problem(
        Problem(500, "upstream_failed", "Service failed", "The service failed.", _RELEASED)
    )


def upstream_slow() -> Answer:
    """504."""
    return problem(
        Problem(
            504,
            "upstream_slow",
            "Upstream too slow",
            "The service behind this gateway did not answer in time.",
            _RELEASED,
        )
    )


def upstream_refused_us(status: int) -> Answer:
    """502: its answer is about our credentials, and none of the caller's business."""
    return problem(
        Problem(
            502,
            "upstream_refused_us",
            "Upstream refused the gateway",
            f"The service behind this gateway refused the gateway itself ({status}).",
            _RELEASED,
        )
    )


def upstream_unreadable(why: str) -> Answer:
    """502: an answer that cannot be metered is not passed on for nothing."""
    return problem(Problem(502, "upstream_unreadable", "Upstream not understood", why, _RELEASED))


def no_upstream(path: str) -> Answer:
    """404: no upstream has this path."""
    return problem(
        Problem(404, "no_upstream", "Nothing here", f"No service is configured for {path[:200]!r}.")
    )


def upgrade_refused() -> Answer:
    """400: the caller can put it right, and nothing here has failed."""
    return problem(
        Problem(
            400,
            "upgrade_not_supported",
            "No WebSockets here",
            "This gateway forwards plain HTTP requests; it upgrades no connection.",
        )
    )


def failed() -> Answer:
    """500: a defect of ours."""
    return problem(
        Problem(
            500,
            "internal_error",
            "Internal error",
            "The gateway failed; the request was not completed.",
            "What was held for the request is settled by what was delivered.",
        )
    )
