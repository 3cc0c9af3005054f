"""The body of an answer that is an error."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Error"]


class Error(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error response. Look for `request_id` in the server's log."""

    error_code: str | None = None
    message: str
    request_id: str
