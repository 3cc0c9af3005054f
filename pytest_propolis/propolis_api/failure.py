"""Errors of failed operations: `ApiError` if the server refused, `AgentError` if it did not respond."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec

from ..errors import AgentError, ApiError
from . import API_VERSION, Error
from .connection.endpoint import Endpoint

__all__ = ["api_error", "is_version_refused", "unanswered", "unreadable", "version_hint"]

_QUOTED_BYTES: Final = 300
_VERSION_REFUSED: Final = "server does not support this API version"
"""What Dropshot answers, with 400, to a client of a version newer than its own."""
_HINTS: Final[Mapping[int, str]] = {
    400: "the server cannot do what was asked for: correct what the message names",
    403: "the instance's state does not allow this now: wait for another state, and ask again",
    404: "compare the name with the keys of the instance's spec",
    409: "the server has an instance already: stop it and wait for Destroyed, or use another server",
    410: "the instance is gone: ensure a new one",
    424: "the server has no active instance: ensure one and run it, or see in its log why it ended",
    501: "this server does not implement what was asked for: leave it out, or use a server that does",
}


def api_error(status: int, content: bytes, *, vm: str | None, operation: str, log_path: Path | None = None) -> ApiError:
    """Return the error for an answer that is none of the 2xx, whether its body is the API's or some other program's.

    :param log_path: the log of the server, if it is known.
    """
    body = _error_body(content)
    if body is None:
        return ApiError(
            _plain_text(status, content),
            status=status,
            vm=vm,
            operation=operation,
            hint="the answer is not in the form of a Propolis server: see which program listens there",
        )
    return ApiError(
        body.message,
        status=status,
        error_code=body.error_code,
        request_id=body.request_id,
        vm=vm,
        operation=operation,
        hint=_hint(status, body, log_path),
    )


def unreadable(status: int, kind: str, error: msgspec.DecodeError, *, vm: str | None, operation: str) -> ApiError:
    """Return the error for a 2xx answer that is not of the kind that the API promises."""
    return ApiError(
        f"the answer is not a valid {kind}: {error}",
        status=status,
        vm=vm,
        operation=operation,
        hint=f"the server should speak version {API_VERSION} of the API: compare its version",
    )


def unanswered(endpoint: Endpoint, error: Exception, *, vm: str | None, operation: str, waited_s: float) -> AgentError:
    """Return the error for no answer at all."""
    if isinstance(error, TimeoutError):
        did, hint = "is silent", "the server is there but busy or stuck: see its log"
    else:
        did, hint = "does not answer", "the VM's server or its agent has ended: see the agent's log"
    return AgentError(f"{endpoint} {did}: {_reason(error)}", vm=vm, operation=operation, waited_s=waited_s, hint=hint)


def is_version_refused(error: ApiError) -> bool:
    """Return whether the server is older than the client's version of the API."""
    return error.status == 400 and error.message.startswith(_VERSION_REFUSED)


def version_hint(newest: str | None) -> str:
    """Return the remedy for a server that is older than the client.

    :param newest: the newest version that it speaks, where that is known.
    """
    older = f"the server speaks versions up to {newest} of the API" if newest else "the server is older"
    return f"{older}, and this client speaks {API_VERSION}: use a newer server"


def _hint(status: int, body: Error, log_path: Path | None) -> str:
    where = log_path or "the server's log"
    return _HINTS.get(status, f"look for request {body.request_id} in {where}")


def _error_body(content: bytes) -> Error | None:
    try:
        return msgspec.json.decode(content, type=Error)
    except msgspec.DecodeError:
        return None


def _plain_text(status: int, content: bytes) -> str:
    text = content[:_QUOTED_BYTES].decode(errors="replace").strip()
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "unknown status"
    return f"{phrase}: {text}" if text else phrase


def _reason(error: BaseException) -> str:
    """Return the operating system's own words where there are any, however deeply wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
