"""Client of the agent's extensions to the Propolis API of one VM. Other servers lack them, which is an error."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec

from ..agent_api.disks import AttachDisk
from ..agent_api.messages import ExtendedInfo
from ..agent_api.networks import ForwardPort, PortForwarded
from ..errors import AgentError, CapabilityMissing
from ..propolis_api import Component, InstanceSpec
from ..propolis_api.connection.endpoint import Endpoint
from ..propolis_api.connection.transport import http_client
from ..propolis_api.failure import api_error

__all__ = ["attach_disk", "forward_guest_port", "get_extended_info", "get_screenshot"]

ANSWER_TIMEOUT_S: Final = 30.0


async def get_extended_info(endpoint: Endpoint, *, vm: str) -> ExtendedInfo:
    """Return the facts that the API lacks.

    :raises CapabilityMissing: if the VM's server is not run by an agent.
    """
    missing = CapabilityMissing("its server has only the API", vm=vm, operation="facts")
    content = await _get(endpoint, "", vm=vm, operation="facts", missing=missing)
    return msgspec.json.decode(content, type=ExtendedInfo)


async def get_screenshot(endpoint: Endpoint, *, vm: str) -> bytes:
    """Return a screenshot of the display as a PNG image.

    :raises CapabilityMissing: if the VM has no display.
    :raises ApiError: if the VM is not running.
    """
    missing = CapabilityMissing(
        "it has no display", vm=vm, operation="screenshot", hint="ask for one with VmConfig(display=True)"
    )
    return await _get(endpoint, "/screenshot", vm=vm, operation="screenshot", missing=missing)


async def attach_disk(endpoint: Endpoint, components: Mapping[str, Component], *, vm: str) -> InstanceSpec:
    """Hot-plug a disk into a running VM; return the spec with the disk.

    :raises CapabilityMissing: if the VM's server is not run by an agent.
    :raises ApiError: if the server rejects it.
    """
    missing = CapabilityMissing("its server cannot plug disks into a VM that runs", vm=vm, operation="attach")
    body = msgspec.json.encode(AttachDisk(components=dict(components)))
    answer = await _request("POST", endpoint, "/disks", body, vm=vm, operation="attach", missing=missing)
    return msgspec.json.decode(answer, type=InstanceSpec)


async def forward_guest_port(endpoint: Endpoint, port: int, *, vm: str) -> int:
    """Return a port of the loopback interface of a VM's host that leads to a TCP port of its guest from now on.

    :raises CapabilityMissing: if the VM's server is not run by an agent.
    :raises ApiError: if the server refuses.
    """
    missing = CapabilityMissing("its server forwards no ports", vm=vm, operation="forward")
    body = msgspec.json.encode(ForwardPort(guest_port=port))
    answer = await _request("POST", endpoint, "/forwards", body, vm=vm, operation="forward", missing=missing)
    return msgspec.json.decode(answer, type=PortForwarded).port


async def _get(endpoint: Endpoint, path: str, *, vm: str, operation: str, missing: CapabilityMissing) -> bytes:
    return await _request("GET", endpoint, path, None, vm=vm, operation=operation, missing=missing)


async def _request(
    method: str,
    endpoint: Endpoint,
    path: str,
    body: bytes | None,
    *,
    vm: str,
    operation: str,
    missing: CapabilityMissing,
) -> bytes:
    try:
        async with http_client(endpoint) as client:
            answer = await client.request(method, path, content=body, timeout_s=ANSWER_TIMEOUT_S)
    except OSError as error:
        raise AgentError(f"{endpoint} does not answer: {error or type(error).__name__}", vm=vm) from None
    if answer.status == HTTPStatus.NOT_FOUND:
        raise missing
    if not answer.is_success:
        raise api_error(answer.status, answer.content, vm=vm, operation=operation)
    return answer.content
