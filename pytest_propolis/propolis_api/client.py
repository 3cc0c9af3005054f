"""A client of one VM's Propolis server: the 13 operations of the API as methods."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, final
from urllib.parse import quote
from uuid import UUID

import msgspec
from websockets.exceptions import InvalidHandshake, InvalidStatus

from ..errors import AgentError, ApiError
from . import (
    API_VERSION,
    InstanceEnsureRequest,
    InstanceEnsureResponse,
    InstanceGetResponse,
    InstanceMigrateStatusResponse,
    InstanceSerialConsoleHistoryResponse,
    InstanceSpecGetResponse,
    InstanceStateMonitorRequest,
    InstanceStateMonitorResponse,
    InstanceStateRequested,
    InstanceVCRReplace,
    ReplaceResult,
    VolumeStatus,
)
from .connection.endpoint import Endpoint
from .connection.http import HttpAnswer
from .connection.transport import WebSocketOpening, http_client, open_websocket
from .failure import api_error, is_version_refused, unanswered, unreadable, version_hint
from .reading import read
from .serial import NOTICES_HEADER

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = [
    "ANSWER_TIMEOUT_S",
    "ENSURE_TIMEOUT_S",
    "VOLUME_TIMEOUT_S",
    "Endpoint",
    "PropolisClient",
    "WebSocketOpening",
]

ANSWER_TIMEOUT_S: Final = 10.0
ENSURE_TIMEOUT_S: Final = 300.0
"""An ensure request opens every disk, and as the target of a migration talks to the source, before it is answered."""
VOLUME_TIMEOUT_S: Final = 300.0
"""A VCR replacement or a snapshot is answered when it is done, which may be after a reboot or a migration."""

CONSOLE_BUFFER_BYTES: Final = 64 << 10
"""A guest reads its console slowly: of the megabytes that TCP would take, each would have to be typed before the next
command, and sent again when the guest migrates."""
OLDER_VERSIONS: Final = tuple(f"{major}.0.0" for major in range(int(API_VERSION.partition(".")[0]), 0, -1))
"""What a server may speak that does not speak the client's version, the newest first."""

T = TypeVar("T")


@final
class PropolisClient:
    """Speaks to one VM's server. An async context manager; closing twice is fine. Making one costs next to nothing.

    Nothing is tried twice, and nothing checked that the server checks: its refusals are the contract. Proxies named in
    the environment are ignored.

    Every operation raises `ApiError` when the server answers with an error, and `AgentError` when it does not answer:
    no server there, connection lost, or silent for longer than the operation's timeout.

    :param vm: the name of the VM, for errors.
    :param log_path: the log that has the server's failures, for hints of errors.
    """

    def __init__(self, endpoint: Endpoint, *, vm: str | None = None, log_path: Path | None = None) -> None:
        self.endpoint = endpoint
        self.vm = vm
        self._log_path = log_path
        self.on_stop: Callable[[], None] | None = None
        """Called before the server is asked to stop the VM."""
        self._http = http_client(endpoint)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to the server. Websockets are not among them: the caller that opened one closes it."""
        await self._http.aclose()

    async def instance_ensure(self, request: InstanceEnsureRequest) -> InstanceEnsureResponse:
        """Make the instance: PUT /instance. Not idempotent: 409 if there is one, even the same."""
        return await self._request(
            InstanceEnsureResponse, "instance_ensure", "PUT", "/instance", body=request, timeout_s=ENSURE_TIMEOUT_S
        )

    async def instance_get(self) -> InstanceGetResponse:
        """Read properties and state: GET /instance. 424 if there never was an instance."""
        return await self._request(InstanceGetResponse, "instance_get", "GET", "/instance")

    async def instance_spec_get(self) -> InstanceSpecGetResponse:
        """Read the spec: GET /instance/spec."""
        return await self._request(InstanceSpecGetResponse, "instance_spec_get", "GET", "/instance/spec")

    async def instance_state_put(self, state: InstanceStateRequested) -> None:
        """Ask for a state: PUT /instance/state. Returns when the request is queued, or ignored; not when it is done."""
        if state is InstanceStateRequested.STOP and self.on_stop is not None:
            self.on_stop()
        await self._send("instance_state_put", "PUT", "/instance/state", body=state)

    async def instance_state_monitor(self, gen: int) -> InstanceStateMonitorResponse:
        """Wait until the state's generation is at least `gen`: GET /instance/state-monitor.

        Waits as long as it takes. States in between may be skipped; 410 if the instance goes away meanwhile.
        """
        return await self._request(
            InstanceStateMonitorResponse,
            "instance_state_monitor",
            "GET",
            "/instance/state-monitor",
            body=InstanceStateMonitorRequest(gen=gen),
            timeout_s=None,
        )

    async def instance_migrate_status(self) -> InstanceMigrateStatusResponse:
        """Read how far the migrations are: GET /instance/migration-status."""
        return await self._request(
            InstanceMigrateStatusResponse, "instance_migrate_status", "GET", "/instance/migration-status"
        )

    async def instance_serial_history(
        self, *, from_start: int | None = None, most_recent: int | None = None, max_bytes: int | None = None
    ) -> InstanceSerialConsoleHistoryResponse:
        """Read what the guest wrote to COM1: GET /instance/serial/history.

        :param from_start: offset of the first byte, counted from the instance's start.
        :param most_recent: the same, counted backwards from the end. Exactly one of both, else 400.
        :param max_bytes: default 16 KiB, which is the server's.
        """
        return await self._request(
            InstanceSerialConsoleHistoryResponse,
            "instance_serial_history_get",
            "GET",
            "/instance/serial/history",
            query={"from_start": from_start, "most_recent": most_recent, "max_bytes": max_bytes},
        )

    def instance_serial(self, *, from_start: int | None = None, most_recent: int | None = None) -> WebSocketOpening:
        """Open the serial console: websocket /instance/serial.

        Input and output are binary frames; a text frame is control JSON. With exactly one offset the history from there
        on comes first; otherwise only new output comes, silently. The connection sends no pings and takes frames of
        any size. Without an active instance propolis-server accepts it and drops it at once.
        """
        query = {"from_start": from_start, "most_recent": most_recent}
        return WebSocketOpening(
            lambda: self._upgrade(
                "instance_serial",
                "/instance/serial",
                query,
                headers={NOTICES_HEADER: "1"},
                send_buffer_bytes=CONSOLE_BUFFER_BYTES,
            )
        )

    def instance_migrate_start(self, migration_id: UUID) -> WebSocketOpening:
        """Begin to migrate the instance out: websocket /instance/migrate/{id}/start. For other servers, not for tests.

        A refusal may show only as a dropped connection.
        """
        path = f"/instance/migrate/{migration_id}/start"
        return WebSocketOpening(lambda: self._upgrade("instance_migrate_start", path, {}))

    async def issue_nmi(self) -> None:
        """Send the guest a non-maskable interrupt: POST /instance/nmi."""
        await self._send("instance_issue_nmi", "POST", "/instance/nmi")

    async def disk_volume_status(self, disk_id: str) -> VolumeStatus:
        """Read the state of the volume behind a disk: GET /instance/disk/{id}/status.

        :param disk_id: the key of the disk's Crucible backend. 404 if there is none.
        """
        return await self._request(VolumeStatus, "disk_volume_status", "GET", _disk_path(disk_id, "status"))

    async def issue_crucible_snapshot(self, disk_id: str, snapshot_id: UUID) -> None:
        """Have the volume behind a disk snapshotted: POST /instance/disk/{id}/snapshot/{snapshot_id}."""
        await self._send(
            "instance_issue_crucible_snapshot_request",
            "POST",
            _disk_path(disk_id, f"snapshot/{snapshot_id}"),
            timeout_s=VOLUME_TIMEOUT_S,
        )

    async def issue_crucible_vcr(self, disk_id: str, vcr_json: str) -> ReplaceResult:
        """Give the volume behind a disk a new construction request: PUT /instance/disk/{id}/vcr.

        :param vcr_json: the request as JSON text. 400 says why Crucible rejects it.
        """
        return await self._request(
            ReplaceResult,
            "instance_issue_crucible_vcr_request",
            "PUT",
            _disk_path(disk_id, "vcr"),
            body=InstanceVCRReplace(vcr_json=vcr_json),
            timeout_s=VOLUME_TIMEOUT_S,
        )

    async def _request(self, answer: type[T], operation: str, method: str, path: str, **request: Any) -> T:
        response = await self._send(operation, method, path, **request)
        try:
            return read(response.content, answer)
        except msgspec.DecodeError as error:
            kind = answer.__name__
            raise unreadable(response.status, kind, error, vm=self.vm, operation=operation) from error

    async def _send(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, int | None] | None = None,
        body: Any = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> HttpAnswer:
        began = time.monotonic()
        try:
            response = await self._http.request(
                method,
                path,
                query=_given(query) if query else None,
                content=None if body is None else msgspec.json.encode(body),
                timeout_s=timeout_s,
            )
        except OSError as error:
            raise await self._unanswered(operation, error, began) from error
        if not response.is_success:
            raise await self._refused(operation, response.status, response.content)
        return response

    async def _upgrade(
        self,
        operation: str,
        path: str,
        query: Mapping[str, int | None],
        *,
        headers: Mapping[str, str] | None = None,
        send_buffer_bytes: int | None = None,
    ) -> ClientConnection:
        began = time.monotonic()
        try:
            return await open_websocket(
                self.endpoint, path, _given(query), headers=headers, send_buffer_bytes=send_buffer_bytes
            )
        except InvalidStatus as error:
            content = bytes(error.response.body or b"")
            raise await self._refused(operation, error.response.status_code, content) from error
        except (OSError, EOFError, InvalidHandshake) as error:
            raise await self._unanswered(operation, error, began) from error

    async def _refused(self, operation: str, status: int, content: bytes) -> ApiError:
        error = api_error(status, content, vm=self.vm, operation=operation, log_path=self._log_path)
        if is_version_refused(error):
            error.hint = version_hint(await self._newest_version())
        return error

    async def _newest_version(self) -> str | None:
        """Find the newest version of the API that the server accepts; no response names it."""
        for version in OLDER_VERSIONS:
            with contextlib.suppress(OSError):
                async with http_client(self.endpoint, version=version) as http:
                    answer = await http.request("GET", "/instance", timeout_s=ANSWER_TIMEOUT_S)
                error = api_error(answer.status, answer.content, vm=self.vm, operation="instance_get")
                if answer.is_success or not is_version_refused(error):
                    return version
        return None

    async def _unanswered(self, operation: str, error: Exception, began: float) -> AgentError:
        waited_s = time.monotonic() - began
        no_answer = unanswered(self.endpoint, error, vm=self.vm, operation=operation, waited_s=waited_s)
        return (await self.endpoint.lost_or(no_answer)).with_context(vm=self.vm, operation=operation)


def _given(query: Mapping[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in query.items() if value is not None}


def _disk_path(disk_id: str, rest: str) -> str:
    return f"/instance/disk/{quote(disk_id, safe='')}/{rest}"
