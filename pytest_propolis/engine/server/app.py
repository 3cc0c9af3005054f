"""The Propolis API over HTTP: routes, bodies and error bodies, for the `VmServer` in the request's scope."""

from __future__ import annotations

import logging
import re
import traceback
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from ...operating_system.open_files import too_many_open_files
from ...propolis_api import (
    API_VERSION,
    InstanceEnsureRequest,
    InstanceSerialConsoleHistoryResponse,
    InstanceStateMonitorRequest,
    InstanceStateRequested,
    InstanceVCRReplace,
)
from ..migration.accepted_connection import AcceptedConnection
from ..qemu.qemu_log import append_lines
from ..qemu.serial_history import HistoryGap
from .dropshot_errors import ErrorResponse, HttpError, bad_request
from .serial_websocket import serve_serial
from .server import VmServer

__all__ = ["SERVER_KEY", "engine_app", "http_error"]

SERVER_KEY: Final = "propolis.server"
"""The key of the request's `VmServer` in the ASGI scope."""

JSON: Final = "application/json"
REQUEST_ID: Final = "x-request-id"
INTERNAL: Final = 500
VERSION: Final = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})")
NEWEST_VERSION: Final = tuple(map(int, API_VERSION.split(".")))

HISTORY_BYTES: Final = 16 << 10
GREATEST_NUMBER: Final = (1 << 64) - 1
LONGEST_NUMBER: Final = 100  # int() itself refuses texts of thousands of digits

logger = logging.getLogger(__name__)
T = TypeVar("T")
Handler = Callable[[VmServer, Request], Awaitable[Response]]


def engine_app() -> Starlette:
    """The 13 operations of the API, and paths for the target of a migration that shares no files with the source.

    A scope must carry the server under `SERVER_KEY`.
    """
    return Starlette(
        routes=[
            Route("/instance", _instance, methods=["GET", "PUT"]),
            Route("/instance/spec", _endpoint(_spec), methods=["GET"]),
            Route("/instance/state", _endpoint(_state), methods=["PUT"]),
            Route("/instance/state-monitor", _endpoint(_monitor), methods=["GET"]),
            Route("/instance/migration-status", _endpoint(_migration_status), methods=["GET"]),
            Route("/instance/nmi", _endpoint(_nmi), methods=["POST"]),
            Route("/instance/serial/history", _endpoint(_serial_history), methods=["GET"]),
            WebSocketRoute("/instance/serial", _serial),
            Route("/instance/serial", _endpoint(_upgrade_expected), methods=["GET"]),
            Route("/instance/disk/{id}/status", _endpoint(_volume_status), methods=["GET"]),
            Route("/instance/disk/{id}/vcr", _endpoint(_replace_volume), methods=["PUT"]),
            Route("/instance/disk/{id}/snapshot/{snapshot}", _endpoint(_snapshot), methods=["POST"]),
            WebSocketRoute("/instance/migrate/{id}/start", _migrate_out),
            Route("/instance/migrate/{id}/start", _endpoint(_migrate), methods=["GET"]),
            WebSocketRoute("/instance/migrate/{id}/stream/{name}", _migration_stream),
            Route("/instance/migrate/{id}/outcome", _endpoint(_migration_outcome), methods=["GET"]),
        ],
        exception_handlers={HttpError: _refuse, HTTPException: http_error, Exception: _crash},
    )


def encoded(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


async def decoded(request: Request, kind: type[T]) -> T:
    """Decode the body as `kind`.

    :raises HttpError: 400 with the location of the fault, or if the content type is not JSON.
    """
    media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if media_type != JSON:
        raise HttpError(bad_request(f'expected content type "{JSON}", got "{media_type}"'))
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.DecodeError as error:
        raise HttpError(bad_request(f"unable to parse JSON body: {error}")) from None


def error_response(answer: ErrorResponse) -> Response:
    request_id = str(uuid.uuid4())
    logger.info("request %s: %d %s (%s)", request_id, answer.status, answer.message, answer.error_code)
    response = encoded(answer.body(request_id=request_id), answer.status)
    response.headers[REQUEST_ID] = request_id
    return response


def _endpoint(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await handler(_server(request), request)

    return endpoint


def _server(connection: HTTPConnection) -> VmServer:
    """Return the server that a request is for.

    :raises HttpError: 400 if it requests an API version that is not supported.
    """
    _require_version(connection.headers.get("api-version", API_VERSION))
    server = connection.scope[SERVER_KEY]
    assert isinstance(server, VmServer)
    return server


def _require_version(text: str) -> None:
    if not (match := VERSION.fullmatch(text)):
        raise HttpError(bad_request(f'bad value for header "api-version": {text!r} is not a version'))
    if tuple(map(int, match.groups())) > NEWEST_VERSION:
        raise HttpError(bad_request(f"server does not support this API version: {text}"))


async def _instance(request: Request) -> Response:
    if request.method == "PUT":
        return encoded(await _server(request).ensure(await decoded(request, InstanceEnsureRequest)), 201)
    return encoded(_server(request).get())


async def _spec(server: VmServer, _request: Request) -> Response:
    return encoded(server.get_spec())


async def _state(server: VmServer, request: Request) -> Response:
    server.put_state(await decoded(request, InstanceStateRequested))
    return Response(status_code=204)


async def _monitor(server: VmServer, request: Request) -> Response:
    return encoded(await server.monitor((await decoded(request, InstanceStateMonitorRequest)).gen))


async def _migration_status(server: VmServer, _request: Request) -> Response:
    return encoded(server.migration_status())


async def _nmi(server: VmServer, _request: Request) -> Response:
    await server.nmi()
    return encoded(None)


async def _volume_status(server: VmServer, request: Request) -> Response:
    return encoded(server.volume_status(request.path_params["id"]))


async def _replace_volume(server: VmServer, request: Request) -> Response:
    new = await decoded(request, InstanceVCRReplace)
    return encoded(await server.replace_volume(request.path_params["id"], new.vcr_json))


async def _serial_history(server: VmServer, request: Request) -> Response:
    position = serial_position(request.query_params)
    max_bytes = _number(request.query_params, "max_bytes")
    history = server.serial().history
    if len([value for value in position.values() if value is not None]) != 1:
        raise HttpError(bad_request("exactly one of from_start and most_recent must be given"))
    offset = history.offset_of(**position)
    try:
        data = history.read(offset, HISTORY_BYTES if max_bytes is None else max_bytes)
    except HistoryGap as error:
        raise HttpError(bad_request(str(error))) from None
    return encoded(InstanceSerialConsoleHistoryResponse(data=data, last_byte_offset=offset + len(data)))


async def _serial(websocket: WebSocket) -> None:
    try:
        server, position = _server(websocket), serial_position(websocket.query_params)
    except HttpError as refusal:
        await websocket.send_denial_response(error_response(refusal.answer))
        return
    await websocket.accept()
    try:
        port = server.serial()
    except HttpError:
        await websocket.close()  # as propolis-server: a websocket that was accepted has no error bodies
        return
    if None not in position.values():
        position = {}  # as propolis-server: if both offsets are given, neither counts, and output is sent from now on
    await serve_serial(websocket, port, port.history.offset_of(**position))


async def _migrate_out(websocket: WebSocket) -> None:
    """Serve the target of a migration. As upstream, a refusal drops the connection at once."""
    await _serve_target(websocket, lambda server, migration, connection: server.migrate_out(migration, connection))


async def _migration_outcome(server: VmServer, request: Request) -> Response:
    """Respond with the outcome of a migration to a target that has lost its connection."""
    return encoded(server.migration_outcome(require_uuid(request, "id")))


async def _migration_stream(websocket: WebSocket) -> None:
    """Carry a stream of a migration, for a target that can reach only this server on this host."""
    name = websocket.path_params["name"]
    await _serve_target(
        websocket, lambda server, migration, connection: server.take_migration_stream(migration, name, connection)
    )


async def _serve_target(websocket: WebSocket, serve: Callable[[VmServer, uuid.UUID, AcceptedConnection], None]) -> None:
    try:
        server, migration_id = _server(websocket), require_uuid(websocket, "id")
    except HttpError as refusal:
        await websocket.send_denial_response(error_response(refusal.answer))
        return
    await websocket.accept()
    connection = AcceptedConnection(websocket)
    try:
        serve(server, migration_id, connection)
    except HttpError as refusal:
        await connection.close(refusal.answer.error_code or refusal.answer.message)
    await connection.ended()
    await connection.close("the VM has ended")


def serial_position(query: QueryParams) -> dict[str, int | None]:
    return {name: _number(query, name) for name in ("from_start", "most_recent")}


def _number(query: QueryParams, name: str) -> int | None:
    texts = query.getlist(name)
    if not texts:
        return None
    if len(texts) > 1:
        raise HttpError(bad_request(f"unable to parse query string: duplicate field `{name}`"))
    (text,) = texts
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER) or int(text) > GREATEST_NUMBER:
        raise HttpError(bad_request(f"query parameter {name!r} must be a whole number below 2^64, not {text!r}"))
    return int(text)


async def _upgrade_expected(_server: VmServer, request: Request) -> Response:
    """Handle a plain request to a websocket endpoint."""
    serial_position(request.query_params)
    raise HttpError(bad_request("expected connection upgrade"))


async def _snapshot(server: VmServer, request: Request) -> Response:
    await server.snapshot(request.path_params["id"], require_uuid(request, "snapshot"))
    return encoded(None)


async def _migrate(server: VmServer, request: Request) -> Response:
    require_uuid(request, "id")
    return await _upgrade_expected(server, request)


def require_uuid(connection: HTTPConnection, name: str) -> uuid.UUID:
    """Return a path parameter.

    :raises HttpError: 400 if it is not a UUID.
    """
    text = connection.path_params[name]
    try:
        return uuid.UUID(text)
    except ValueError:
        raise HttpError(bad_request(f"bad parameter in URL path: {name!r} must be a UUID, not {text!r}")) from None


async def _refuse(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, HttpError)
    response = error_response(refusal.answer)
    if response.status_code == INTERNAL:
        _log_failure(request, response, refusal.answer.message)
    return response


async def http_error(_request: Request, error: Exception) -> Response:
    """Convert the router's errors (unknown path, wrong method) to the API's format."""
    assert isinstance(error, HTTPException)
    response = error_response(ErrorResponse(status=error.status_code, message=error.detail))
    response.headers.update(error.headers or {})
    return response


async def _crash(request: Request, error: Exception) -> Response:
    logger.error("unexpected error", exc_info=error)
    message = f"unexpected error: {type(error).__name__}: {error}"
    if exhausted := too_many_open_files(error):
        message = f"{exhausted.message}; {exhausted.hint}"
    response = error_response(ErrorResponse(status=INTERNAL, error_code="Internal", message=message))
    _log_failure(request, response, "".join(traceback.format_exception(error)))
    return response


def _log_failure(request: Request, response: Response, text: str) -> None:
    """Write a failure to the VM's log, which a test has when this server and its log are gone."""
    append_lines(request.scope[SERVER_KEY].log_path, f"request {response.headers[REQUEST_ID]}: {text}")
