"""Hooks for Schemathesis, which loads them in its own environment by the variable SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from typing import Any

import schemathesis  # type: ignore[import-not-found]  # it is in the other environment

DISK = os.environ["PROPOLIS_FUZZED_DISK"]
BASE_URL = os.environ["PROPOLIS_FUZZED_SERVER"]
MEMORY_MIB = 64
BLOB = base64.b64encode(bytes(512)).decode()
TIMEOUT_S = 30


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_load_schema(_context: Any, raw_schema: dict[str, Any]) -> None:
    """Correct the schema of null, which the document describes as a string that is null."""
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                for content in answer.get("content", {}).values():
                    if content.get("schema", {}).get("title") == "Null":
                        content["schema"] = {"nullable": True, "enum": [None]}


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Replace generated values that would make every VM fail early, or a request wait forever."""
    body = case.body
    if not isinstance(body, dict):
        return
    if case.operation.path == "/instance/state-monitor" and type(body.get("gen")) is int and body["gen"] > 1:
        body["gen"] %= 2
    if case.operation.path == "/instance" and case.operation.method.lower() == "put":
        _tame(body)
        if len(str(body)) % 4:
            _end_the_vm()


def _tame(ensure: dict[str, Any]) -> None:
    """No file of this host but the one made for it, a size that fits, and backends for devices as far as they go."""
    try:
        spec = ensure["init"]["value"]["spec"]
        board, components = spec["board"], spec["components"]
        board["memory_mb"] = board["memory_mb"] and MEMORY_MIB
        board["cpus"] = board["cpus"] and 1 + board["cpus"] % 4
        for number, part in enumerate(components.values()):
            _tame_component(part["type"], part["component"], number, components)
    except (KeyError, TypeError, AttributeError):
        return  # made to be wrong


def _tame_component(kind: str, part: dict[str, Any], number: int, components: dict[str, Any]) -> None:
    if kind == "file_storage_backend":
        part |= {"path": DISK, "block_size": 4096 if part["block_size"] % 2 else 512}
    elif kind == "blob_storage_backend":
        part["base64"] = BLOB
    elif kind == "virtio_network_backend":
        part["vnic_name"] = "user:isolated"
    elif kind in ("virtio_disk", "nvme_disk", "virtio_nic"):
        wanted = "network" if kind == "virtio_nic" else "storage"
        used = {other["component"].get("backend_id") for other in components.values()}
        free = [key for key, other in components.items() if wanted in other["type"] and key not in used]
        part["backend_id"] = free[0] if free else part["backend_id"]
    if "pci_path" in part and part["pci_path"]["device"] % 4:
        part["pci_path"] = {"bus": 0, "device": 3 + number, "function": 0}


def _end_the_vm() -> None:
    """Destroy the VM, so that the next request can create one."""
    try:
        _ask("PUT", "/instance/state", b'"Stop"')
        gen = 0
        while True:
            told = json.loads(_ask("GET", "/instance/state-monitor", json.dumps({"gen": gen}).encode()))
            if told["state"] in ("Destroyed", "Failed"):
                return
            gen = told["gen"] + 1
    except urllib.error.HTTPError:
        return  # there was none


def _ask(method: str, path: str, body: bytes) -> bytes:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(BASE_URL + path, data=body, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        answer: bytes = response.read()
        return answer


@schemathesis.check  # type: ignore[untyped-decorator]
def nothing_unexpected_failed(_context: Any, response: Any, _case: Any) -> None:
    """Accept only the server errors that the API defines: 501, and 500 for a VM whose creation failed."""
    if response.status_code < 500 or response.status_code == 501:
        return
    message = response.json()["message"]
    assert response.status_code == 500, f"{response.status_code}: {message}"
    assert message.startswith("VM initialization failed: "), message
