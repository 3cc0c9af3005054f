"""The client of an agent's own paths."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from types import NoneType
from typing import Any, Final, Self, TypeVar

import httpx
import msgspec

from ..agent_api.messages import (
    CLIENT_HEADER,
    AgentInfo,
    CreateDisk,
    CreateVm,
    CreateVolume,
    DiskCreated,
    DownstairsFault,
    Fault,
    ForkVm,
    FreezeVm,
    ImageNeeded,
    Keep,
    KeptListed,
    ResourceIds,
    StreamLine,
    TemplateMaking,
    TemplateNeeded,
    VmCreated,
    VmForked,
    VmListed,
    VolumeCreated,
    VolumeListed,
)
from ..agent_api.migration_report import MigrationReport
from ..errors import AgentError
from ..propolis_api import InstanceVCRReplace, ReplaceResult
from ..propolis_api.endpoint import Endpoint
from ..propolis_api.failure import api_error
from ..propolis_api.transport import http_client

__all__ = ["AsyncAgentClient"]

T = TypeVar("T")
BASE_URL: Final = "http://agent"
ANSWER_TIMEOUT: Final = httpx.Timeout(60.0)


class AsyncAgentClient:
    """Speaks to one agent, within one event loop.

    Errors that the agent reports are raised as what they were there; a broken connection raises `AgentError`.
    """

    def __init__(self, socket: Path, *, client: str) -> None:
        self._socket = socket
        self._http = http_client(self.endpoint(""))
        self._http.headers[CLIENT_HEADER] = client
        self._http.timeout = ANSWER_TIMEOUT

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    def endpoint(self, path: str) -> Endpoint:
        """The Propolis API below a path of this agent."""
        return Endpoint(base_url=BASE_URL + path, uds=self._socket)

    async def info(self) -> AgentInfo:
        return await self._call("GET", "/agent", AgentInfo)

    async def get_images(self, needed: ImageNeeded, progress: Callable[[str], None]) -> tuple[Path, ...]:
        """Have images fetched or made on the agent's host; can take minutes, and says what it does."""
        async with aclosing(self._stream("/images", needed, progress)) as lines:
            async for line in lines:
                if line.paths is not None:
                    return tuple(Path(path) for path in line.paths)
        raise self._lost("the answer ended early")

    async def get_template(
        self,
        needed: TemplateNeeded,
        progress: Callable[[str], None],
        make: Callable[[TemplateMaking], Awaitable[None]],
    ) -> str:
        """The key of a template on the agent's host; can take minutes, and says what happens.

        :param make: boots the VM that it is given and freezes it, or gives it up. Called if there is no template yet.
        :raises TemplateError: when there is none in the end.
        """
        async with aclosing(self._stream("/templates", needed, progress)) as lines:
            async for line in lines:
                if line.making is not None:
                    await make(line.making)
                elif line.template is not None:
                    return line.template
        raise self._lost("the answer ended early")

    async def freeze(self, vm_id: str, request: FreezeVm) -> None:
        await self._call("POST", f"/templates/{vm_id}/freeze", NoneType, request)

    async def give_up(self, vm_id: str, reason: str) -> None:
        await self._call("POST", f"/templates/{vm_id}/give-up", NoneType, reason)

    async def fork_vm(self, request: ForkVm) -> VmForked:
        """
        :raises TemplateError: when there is no such template any more, or it is not taken.
        :raises ApiError: when it is to run, and its server refuses the spec.
        """
        return await self._call("POST", "/forks", VmForked, request)

    async def create_vm(self, request: CreateVm) -> VmCreated:
        return await self._call("POST", "/vms", VmCreated, request)

    async def remove_vm(self, vm_id: str) -> None:
        await self._call("DELETE", f"/vms/{vm_id}", NoneType)

    async def list_vms(self) -> list[VmListed]:
        return await self._call("GET", "/vms", list[VmListed])

    async def migrations(self, vm_path: str) -> MigrationReport:
        """What the Propolis API does not say of the latest migrations of a VM: how they went about it.

        :param vm_path: the path of its server.
        """
        return await self._call("GET", f"{vm_path}/migrations", MigrationReport)

    async def create_disk(self, request: CreateDisk) -> DiskCreated:
        return await self._call("POST", "/disks", DiskCreated, request)

    async def remove_disk(self, disk_id: str) -> None:
        await self._call("DELETE", f"/disks/{disk_id}", NoneType)

    async def create_volume(self, request: CreateVolume) -> VolumeCreated:
        """Make a replicated volume, whose downstairs run."""
        return await self._call("POST", "/volumes", VolumeCreated, request)

    async def get_volume(self, volume_id: str) -> VolumeListed:
        return await self._call("GET", f"/volumes/{volume_id}", VolumeListed)

    async def remove_volume(self, volume_id: str) -> None:
        await self._call("DELETE", f"/volumes/{volume_id}", NoneType)

    async def add_downstairs(self, volume_id: str) -> str:
        """Start another downstairs of a volume, with an empty file; return its address."""
        return await self._call("POST", f"/volumes/{volume_id}/downstairs", str)

    async def fault_downstairs(self, volume_id: str, address: str, fault: DownstairsFault) -> None:
        await self._call("POST", f"/volumes/{volume_id}/downstairs/{address}/fault", NoneType, fault)

    async def replace_unchecked(self, vm_id: str, backend: str, vcr_json: str) -> ReplaceResult:
        """Give a VM's volume a new construction request, without Crucible's rules for what may be replaced when."""
        body = InstanceVCRReplace(vcr_json=vcr_json)
        return await self._call("PUT", f"/vms/{vm_id}/disks/{backend}/vcr", ReplaceResult, body)

    async def remove(self, belongings: ResourceIds) -> None:
        """Remove VMs and then disks; returns when they are gone. What is gone already is passed over."""
        await self._call("POST", "/removal", NoneType, belongings)

    async def keep(self, request: Keep) -> KeptListed:
        """Have the agent take VMs and disks over, which then outlive this client."""
        return await self._call("POST", "/kept", KeptListed, request)

    async def _stream(self, path: str, needed: Any, progress: Callable[[str], None]) -> AsyncGenerator[StreamLine]:
        """The lines of an answer that are not progress."""
        try:
            async with self._http.stream(
                "POST", path, content=msgspec.json.encode(needed), timeout=httpx.Timeout(60.0, read=None)
            ) as response:
                async for text in response.aiter_lines():
                    line = msgspec.json.decode(text, type=StreamLine)
                    if line.progress is not None:
                        progress(line.progress)
                    elif line.fault is not None:
                        raise line.fault.to_error()
                    else:
                        yield line
        except httpx.TransportError as error:
            raise self._lost(error) from None

    async def _call(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        content = None if body is None else msgspec.json.encode(body)
        try:
            response = await self._http.request(method, path, content=content)
        except httpx.TransportError as error:
            raise self._lost(error) from None
        if response.status_code == 422:
            raise msgspec.json.decode(response.content, type=Fault).to_error()
        if response.status_code in (400, 501):
            raise api_error(response.status_code, response.content, vm=None, operation=f"{method} {path}")
        if response.is_error:
            raise AgentError(f"the agent answered {response.status_code} to {method} {path}: {response.text}")
        return msgspec.json.decode(response.content or b"null", type=kind)

    def _lost(self, error: object) -> AgentError:
        return AgentError(
            f"the agent behind {self._socket} does not answer: {error or type(error).__name__}",
            hint=f"its log is {self._socket.with_name('agent.log')}",
        )
