"""A refusal: the exception that becomes an error body of the API."""

from __future__ import annotations

from .dropshot_errors import ErrorResponse

__all__ = ["HttpError", "unsupported"]


class HttpError(Exception):
    """Raised where a Propolis server answers with an error."""

    def __init__(self, answer: ErrorResponse) -> None:
        super().__init__(answer.message)
        self.answer = answer


def unsupported(what: str) -> HttpError:
    """This engine does not do that: 501, which upstream never answers."""
    return HttpError(
        ErrorResponse(status=501, error_code="NotImplemented", message=f"this engine does not support {what}")
    )
