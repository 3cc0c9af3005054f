"""The errors that a propolis-server answers with: status, error code, message.

Upstream's HTTP library, dropshot, either shows a text to the client as the ``message``, or puts the standard label of
the status there and the text, if any, into the ``error_code``. Which of the two is used where is part of the contract.
The ``request_id`` that completes the body is the HTTP layer's.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import msgspec

from ..request_queue import DenyReason

__all__ = [
    "ALREADY_INITIALIZED",
    "NO_INSTANCE",
    "VM_DESTROYED",
    "ErrorResponse",
    "HttpError",
    "backend_not_found",
    "bad_request",
    "crucible_error",
    "disk_not_found",
    "initialization_failed",
    "never_published",
    "state_change_denied",
    "unsupported",
]


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One error as the client sees it, but for the request id.

    :param status: the HTTP status code.
    :param message: the text for users.
    :param error_code: the text for programs; None is left out of the body.
    """

    status: int
    message: str
    error_code: str | None = None

    def body(self, *, request_id: str) -> dict[str, str]:
        """The JSON body: the API's ``Error``."""
        code = {} if self.error_code is None else {"error_code": self.error_code}
        return {"request_id": request_id, **code, "message": self.message}


class HttpError(Exception):
    """Raised when a Propolis server responds with an error."""

    def __init__(self, answer: ErrorResponse) -> None:
        super().__init__(answer.message)
        self.answer = answer


NO_INSTANCE: Final = ErrorResponse(
    status=HTTPStatus.FAILED_DEPENDENCY, error_code="NoInstance", message="Server not initialized (no instance)"
)
"""There is no VM, or it is not active."""

ALREADY_INITIALIZED: Final = ErrorResponse(
    status=HTTPStatus.CONFLICT, error_code="AlreadyInitialized", message="instance already initialized"
)
"""There is a VM already, even if it is the same."""

VM_DESTROYED: Final = ErrorResponse(
    status=HTTPStatus.GONE, error_code="VM destroyed before request could be handled", message="Gone"
)
"""A component change was queued, and the VM ended before it was served."""


def state_change_denied(reason: DenyReason) -> ErrorResponse:
    """The request queue denied a state change or a component change: 403."""
    return _labelled(HTTPStatus.FORBIDDEN, f"instance state change not allowed: {reason.value}")


def never_published(gen: int) -> ErrorResponse:
    """The VM was run down while an observer waited for generation `gen`: 410."""
    message = f"No instance present; will never reach generation {gen}"
    return ErrorResponse(status=HTTPStatus.GONE, error_code="NoInstance", message=message)


def disk_not_found(disk_id: str) -> ErrorResponse:
    """The snapshot endpoint knows no such disk: 404."""
    return _labelled(HTTPStatus.NOT_FOUND, f"no disk with id {disk_id}!")


def backend_not_found(backend_id: str) -> ErrorResponse:
    """The disk status or VCR endpoint knows no such Crucible backend: 404."""
    return _labelled(HTTPStatus.NOT_FOUND, f"No crucible backend for id {backend_id}")


def crucible_error(text: str) -> ErrorResponse:
    """Crucible rejected the request: 400, with its text as error code and message."""
    return ErrorResponse(status=HTTPStatus.BAD_REQUEST, error_code=text, message=text)


def bad_request(message: str) -> ErrorResponse:
    """The request is invalid: 400, without an error code."""
    return ErrorResponse(status=HTTPStatus.BAD_REQUEST, message=message)


def initialization_failed(reason: str) -> ErrorResponse:
    """The VM could not be created: 500.

    Upstream logs the reason and shows "Internal Server Error"; here the client is a test, whose author has no other
    place to read it.
    """
    message = f"VM initialization failed: {reason}"
    return ErrorResponse(status=HTTPStatus.INTERNAL_SERVER_ERROR, error_code="Internal", message=message)


def unsupported(what: str) -> HttpError:
    """Return the error for a feature that this engine does not support: 501, which upstream never returns."""
    return HttpError(
        ErrorResponse(status=501, error_code="NotImplemented", message=f"this engine does not support {what}")
    )


def _labelled(status: HTTPStatus, error_code: str) -> ErrorResponse:
    return ErrorResponse(status=status, error_code=error_code, message=status.phrase)
