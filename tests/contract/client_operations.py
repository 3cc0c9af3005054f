"""Each operation of the OpenAPI document, as a call of the client, with an answer to it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from uuid import UUID

import msgspec
from openapi_document import operations
from recording_server import Recorder
from websockets.asyncio.client import ClientConnection

import pytest_propolis.propolis_api as api
from pytest_propolis.propolis_api.client import (
    PropolisClient,
)

__all__ = ["ANSWERS", "CALLS", "ID", "OPERATIONS", "PREFIX", "call"]

OPERATIONS: Final = {operation.name: operation for operation in operations()}
PREFIX: Final = "/vms/3f2a"
ID: Final = UUID(int=7)

REQUEST: Final = api.InstanceEnsureRequest(
    properties=api.InstanceProperties(
        id=ID,
        name="one",
        description="",
        metadata=api.InstanceMetadata(
            project_id=ID, silo_id=ID, sled_id=ID, sled_model="m", sled_revision=1, sled_serial="s"
        ),
    ),
    init=api.MigrationTargetInit(api.FromMigration(migration_id=ID, replace_components={}, src_addr="[::1]:12400")),
)

CALLS: Final[Mapping[str, Callable[[PropolisClient], Awaitable[Any]]]] = {
    "instance_ensure": lambda client: client.instance_ensure(REQUEST),
    "instance_get": lambda client: client.instance_get(),
    "instance_spec_get": lambda client: client.instance_spec_get(),
    "instance_state_put": lambda client: client.instance_state_put(api.InstanceStateRequested.REBOOT),
    "instance_state_monitor": lambda client: client.instance_state_monitor(3),
    "instance_migrate_status": lambda client: client.instance_migrate_status(),
    "instance_serial_history_get": lambda client: client.instance_serial_history(
        from_start=1, most_recent=2, max_bytes=3
    ),
    "instance_issue_nmi": lambda client: client.issue_nmi(),
    "disk_volume_status": lambda client: client.disk_volume_status("root-backend"),
    "instance_issue_crucible_snapshot_request": lambda client: client.issue_crucible_snapshot("root-backend", ID),
    "instance_issue_crucible_vcr_request": lambda client: client.issue_crucible_vcr("root-backend", '{"a": 1}'),
    "instance_serial": lambda client: client.instance_serial(from_start=1, most_recent=2),
    "instance_migrate_start": lambda client: client.instance_migrate_start(ID),
}

STATUS: Final = {"migration_in": None, "migration_out": {"id": str(ID), "state": "Sync"}}
PROPERTIES: Final = msgspec.to_builtins(REQUEST.properties)
ANSWERS: Final[Mapping[str, Any]] = {
    "instance_ensure": {"migrate": {"migration_id": str(ID)}},
    "instance_get": {"instance": {"properties": PROPERTIES, "state": "Running"}},
    "instance_spec_get": {
        "properties": PROPERTIES,
        "spec": {"type": "WaitingForMigrationSource"},
        "state": "Migrating",
    },
    "instance_state_put": None,
    "instance_state_monitor": {"gen": 3, "state": "Running", "migration": STATUS},
    "instance_migrate_status": STATUS,
    "instance_serial_history_get": {"data": [104, 105, 255], "last_byte_offset": 3},
    "instance_issue_nmi": None,
    "disk_volume_status": {"volume_info": {"volume": {"read_only_parent": None, "sub_volumes": []}}},
    "instance_issue_crucible_snapshot_request": None,
    "instance_issue_crucible_vcr_request": "started",
}


async def call(name: str, client: PropolisClient, recorder: Recorder) -> Any:
    """Call an operation; the server responds as the document specifies."""
    operation = OPERATIONS[name]
    content = b"" if operation.answer is None else json.dumps(ANSWERS[name]).encode()
    recorder.answer = (operation.status, content)
    result = await CALLS[name](client)
    if isinstance(result, ClientConnection):
        await result.close()
    return result
