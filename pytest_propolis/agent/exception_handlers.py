"""What the agent answers when a request ends with an exception."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..agent_api.messages import Fault
from ..engine.server.app import encoded, error_response, http_error
from ..engine.server.dropshot_errors import HttpError
from ..errors import PropolisError
from ..operating_system.open_files import too_many_open_files

__all__ = ["EXCEPTION_HANDLERS"]

Handler: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]


async def _fault(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PropolisError)
    return encoded(Fault.of(error), 422)


async def _refuse(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, HttpError)
    return error_response(refusal.answer)


async def _system_error(_request: Request, error: Exception) -> Response:
    if exhausted := too_many_open_files(error):
        return encoded(Fault.of(exhausted), 422)
    raise error


EXCEPTION_HANDLERS: Final[Mapping[type[Exception], Handler]] = {
    PropolisError: _fault,
    HttpError: _refuse,
    HTTPException: http_error,
    OSError: _system_error,
}
