"""Responses in the format of Dropshot, Oxide's HTTP library."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..propolis_api.error import Error

__all__ = ["answer", "refuse"]


def answer(value: Any, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


async def refuse(_request: Request, error: Exception) -> Response:
    """Turn an `HTTPException` into an error response."""
    assert isinstance(error, HTTPException)
    body = Error(message=error.detail, request_id=str(uuid.uuid4()))
    response = answer(body, status=error.status_code)
    response.headers.update({"x-request-id": body.request_id, **(error.headers or {})})
    return response
