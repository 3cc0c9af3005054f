"""What the agent answers when a request ends with an exception."""

from __future__ import annotations

import errno
import resource
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..agent_api.messages import Fault
from ..engine.server.app import encoded, error_response, http_error
from ..engine.server.http_error import HttpError
from ..errors import PropolisError, ResourceExhausted

__all__ = ["EXCEPTION_HANDLERS"]

Handler: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]


async def _fault(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PropolisError)
    return encoded(Fault.of(error), 422)


async def _refuse(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, HttpError)
    return error_response(refusal.answer)


async def _system_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        exhausted = ResourceExhausted(
            f"the agent has as many open files as it may have: {limit}",
            hint="raise the hard limit (`ulimit -Hn`), or run fewer VMs at once",
        )
    elif error.errno == errno.ENFILE:
        exhausted = ResourceExhausted(
            "the host has as many open files as it can have",
            hint="raise the sysctl fs.file-max, or run fewer VMs at once",
        )
    else:
        raise error
    return encoded(Fault.of(exhausted), 422)


EXCEPTION_HANDLERS: Final[Mapping[type[Exception], Handler]] = {
    PropolisError: _fault,
    HttpError: _refuse,
    HTTPException: http_error,
    OSError: _system_error,
}
