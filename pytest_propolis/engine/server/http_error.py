"""The exception that becomes an error response of the API."""

from __future__ import annotations

from .dropshot_errors import ErrorResponse

__all__ = ["HttpError", "unsupported"]


class HttpError(Exception):
    """Raised when a Propolis server responds with an error."""

    def __init__(self, answer: ErrorResponse) -> None:
        super().__init__(answer.message)
        self.answer = answer


def unsupported(what: str) -> HttpError:
    """Return the error for a feature that this engine does not support: 501, which upstream never returns."""
    return HttpError(
        ErrorResponse(status=501, error_code="NotImplemented", message=f"this engine does not support {what}")
    )
