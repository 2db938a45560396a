"""Every way a wallet call can fail, as a problem document with a stable code."""

from __future__ import annotations

import structlog
from litestar.exceptions import HTTPException

from farebox.errors import (
    FareboxError,
    InvalidInput,
    OutcomeUnknown,
    RailError,
    StoreBusy,
    StoreError,
)
from farebox.ids import new_id
from farebox.paywall.dialects import Problem, problem, refusal, sentence
from farebox.paywall.model import Answer

_log = structlog.get_logger("farebox.api")

_UNKNOWN_OUTCOME = (
    "It may or may not have moved. Send the same request again, with the same Idempotency-Key or "
    "the same token: it is carried out once."
)
_HTTP_FAULTS = {
    404: ("not_found", "Not found", "There is no such endpoint."),
    405: ("method_not_allowed", "Method not allowed", "This endpoint has other methods."),
    413: ("body_too_large", "Body too large", "The request body is over the limit."),
}


def bad_request(code: str, detail: str) -> Answer:
    """400: the caller must change the request."""
    return problem(Problem(400, code, "Bad request", detail))


def unauthorised(detail: str) -> Answer:
    """401: no credential that opens an account."""
    challenge = ((b"www-authenticate", b'Bearer realm="farebox"'),)
    return problem(
        Problem(401, "credential_required", "Credential required", detail, headers=challenge)
    )


def not_found(code: str, detail: str) -> Answer:
    """404: it does not exist, or is not this caller's to see."""
    return problem(Problem(404, code, "Not found", detail))


def conflict(code: str, detail: str, money: str) -> Answer:
    """409: the request is in order and what it asks for stands against what is."""
    return problem(Problem(409, code, "Conflict", detail, money))


def headers_too_large() -> Answer:
    """431: all headers together are over the limit."""
    return problem(
        Problem(431, "headers_too_large", "Headers too large", "The headers are over the limit.")
    )


def in_progress() -> Answer:
    """409: the first call of this name has not ended."""
    return problem(
        Problem(
            409,
            "call_in_progress",
            "Still in progress",
            "The same call is still running; ask again for its answer.",
            _UNKNOWN_OUTCOME,
            headers=((b"retry-after", b"1"),),
        )
    )


def key_reused() -> Answer:
    """422: the idempotency key belongs to another request."""
    return problem(
        Problem(
            422,
            "idempotency_key_reused",
            "Idempotency key reused",
            "This Idempotency-Key was used for another request; choose a new one.",
        )
    )


def keys_exhausted() -> Answer:
    """503: the operator allows no more keys."""
    return refusal("keys_exhausted", "As many keys exist as are allowed here.", {})


def from_exception(error: Exception) -> Answer:
    """The problem that an exception stands for. What is unforeseen is logged, not told."""
    match error:
        case HTTPException(status_code=status) if status in _HTTP_FAULTS:
            return problem(Problem(status, *_HTTP_FAULTS[status]))
        case HTTPException(status_code=status) if status < 500:
            return problem(Problem(status, "bad_request", "Bad request", "It cannot be read."))
        case InvalidInput():
            return bad_request("invalid_input", sentence(str(error)))
        case StoreBusy():
            return _unavailable("busy", "Too much is waiting to be written; try again.")
        case OutcomeUnknown() | StoreError():
            return _unavailable("books_unavailable", "The books cannot be written.", moved=True)
        case RailError():
            return _unavailable("rail_unavailable", "The payment network does not answer.")
        case _:
            return _unforeseen(error)


def _unavailable(code: str, detail: str, *, moved: bool = False) -> Answer:
    retry = ((b"retry-after", b"5"),)
    money = _UNKNOWN_OUTCOME if moved else "No money moved."
    return problem(Problem(503, code, "Unavailable", detail, money, headers=retry))


def _unforeseen(error: Exception) -> Answer:
    incident = new_id("err")
    # A foreign exception may quote what it choked on, which may be a token: its type must do.
    # Ours are written to be shown.
    shown = str(error) if isinstance(error, FareboxError) else ""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    at = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
    _log.error("api.failed", incident=incident, error=type(error).__name__, message=shown, at=at)
    return problem(
        Problem(
            500,
            "internal",
            "Internal error",
            f"Something failed here; the operator finds it as {incident}.",
            _UNKNOWN_OUTCOME,
        )
    )
