"""The asynchronous client of an agent's own paths."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from types import NoneType
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import quote

import msgspec

from ...agent_api.agent_process import CLIENT_HEADER
from ...agent_api.derived import (
    AdoptDerived,
    DerivedNeeded,
    DerivedState,
    DescribeDerived,
    FindDerived,
    FoundDerived,
    SentDerived,
)
from ...agent_api.disks import CreateDisk, DiskCreated, ForkImage, ImageForked
from ...agent_api.image_recipe import ImageNeeded
from ...agent_api.messages import (
    AcceptPeer,
    AgentInfo,
    ConnectPeer,
    CreateVm,
    DerivedAdopted,
    Fault,
    FetchFile,
    FileDigest,
    FileFetched,
    FileFound,
    FindFile,
    ImagesFetched,
    Keep,
    KeptListed,
    PeerAccepted,
    PeerConnected,
    ProgressMade,
    ResourceIds,
    StreamLine,
    TemplateFound,
    VmCreated,
    VmListed,
    WorkFailed,
)
from ...agent_api.migration_report import MigrationReport
from ...agent_api.networks import (
    AddPort,
    ConnectNetworks,
    CreateNetwork,
    MovePort,
    NetworkCreated,
    NetworkFaults,
    PortAdded,
)
from ...agent_api.templates import ForkVm, FreezeVm, TemplateMaking, TemplateNeeded, VmForked
from ...agent_api.volumes import CreateVolume, DownstairsFault, VolumeCreated, VolumeListed
from ...errors import AgentError, PropolisError
from ...propolis_api import InstanceVCRReplace, ReplaceResult
from ...propolis_api.connection.endpoint import Endpoint, Loss
from ...propolis_api.connection.http import HttpClient
from .responses import BASE_URL, ResponseDecoder

__all__ = ["AsyncAgentClient"]

T = TypeVar("T")
ANSWER_TIMEOUT_S: Final = 60.0


class AsyncAgentClient:
    """Asynchronous client of one agent, for one event loop.

    Errors that the agent reports are raised with their original type; a broken connection raises `AgentError`.

    :param loss: returns why the agent's host is lost.
    """

    def __init__(self, socket: Path, *, client: str, loss: Loss | None = None) -> None:
        self.socket = socket
        self.client = client
        self._loss = loss
        self._decoder = ResponseDecoder(socket)
        self._http = HttpClient(self.endpoint(""), headers={CLIENT_HEADER: client})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    def endpoint(self, path: str) -> Endpoint:
        """The Propolis API below a path of this agent."""
        return Endpoint(base_url=BASE_URL + path, uds=self.socket, loss=self._loss)

    async def info(self) -> AgentInfo:
        return await self._call("GET", "/agent", AgentInfo)

    async def get_images(self, needed: ImageNeeded, progress: Callable[[str], None]) -> tuple[Path, ...]:
        """Fetch or build images on the agent's host. Can take minutes, and reports progress."""
        fetched = await self._last_line("/images", needed, progress, ImagesFetched)
        return tuple(Path(path) for path in fetched.paths)

    async def get_template(
        self,
        needed: TemplateNeeded,
        progress: Callable[[str], None],
        make: Callable[[TemplateMaking], Awaitable[None]],
    ) -> str:
        """Return the key of a template on the agent's host. Can take minutes, and reports progress.

        :param make: boots the VM that it receives and freezes it, or reports failure. Called if there is no template
            yet.
        :raises TemplateError: when it cannot be made.
        """
        key = None
        async with aclosing(self._stream("/templates", needed, progress)) as lines:
            async for line in lines:  # to the end, so that the connection can be used again
                if isinstance(line, TemplateMaking):
                    await make(line)
                elif isinstance(line, TemplateFound):
                    key = line.key
        if key is None:
            raise await self._lost("the answer ended early")
        return key

    async def derived_state(self, needed: DerivedNeeded) -> DerivedState:
        """Return whether the agent's host has a template or prepared image, and by what other hosts' agents find it.

        :raises TemplateError: when there cannot be such a template.
        """
        return await self._call("POST", "/derived/state", DerivedState, DescribeDerived(needed=needed))

    async def find_derived(self, identity: str) -> SentDerived | None:
        """Return the files of a template or prepared image that the agent's host has, by its identity on all hosts."""
        return (await self._call("POST", "/derived/found", FoundDerived, FindDerived(identity=identity))).found

    async def adopt_derived(self, adopted: AdoptDerived, progress: Callable[[str], None]) -> None:
        """Have the agent make a template or prepared image of files that it has fetched, unless its host has it.

        :raises PropolisError: when that cannot be done.
        """
        await self._last_line("/derived/adopted", adopted, progress, DerivedAdopted)

    async def freeze(self, vm_id: str, request: FreezeVm) -> None:
        await self._call("POST", f"/templates/{vm_id}/freeze", NoneType, request)

    async def give_up(self, vm_id: str, reason: PropolisError) -> None:
        await self._call("POST", f"/templates/{vm_id}/give-up", NoneType, Fault.of(reason))

    async def fork_vm(self, request: ForkVm) -> VmForked:
        """
        :raises TemplateError: when the template no longer exists, or QEMU cannot load it.
        :raises ApiError: when the fork must run, and its server rejects the spec.
        """
        return await self._call("POST", "/forks", VmForked, request)

    async def create_vm(self, request: CreateVm) -> VmCreated:
        start_s = request.program.start_timeout_s if request.program else 0.0
        return await self._call("POST", "/vms", VmCreated, request, timeout_s=ANSWER_TIMEOUT_S + start_s)

    async def remove_vm(self, vm_id: str) -> None:
        await self._call("DELETE", f"/vms/{vm_id}", NoneType)

    async def list_vms(self) -> list[VmListed]:
        return await self._call("GET", "/vms", list[VmListed])

    async def migrations(self, vm_path: str) -> MigrationReport:
        """Return facts that the Propolis API lacks about the latest migrations of a VM.

        :param vm_path: the path of its server.
        """
        return await self._call("GET", f"{vm_path}/migrations", MigrationReport)

    async def qemu_log(self, vm_id: str) -> bytes:
        """Return the end of what the QEMU of a VM has printed."""
        return await self._bytes("GET", f"/vms/{vm_id}/log")

    async def create_disk(self, request: CreateDisk) -> DiskCreated:
        return await self._call("POST", "/disks", DiskCreated, request)

    async def remove_disk(self, disk_id: str) -> None:
        await self._call("DELETE", f"/disks/{disk_id}", NoneType)

    async def fork_image(self, request: ForkImage) -> ImageForked:
        """Fork an image.

        :raises CapabilityMissing: when no suitable provider can fork it, with the reason of each.
        """
        return await self._call("POST", "/image-forks", ImageForked, request)

    async def remove_fork(self, fork_id: str) -> None:
        await self._call("DELETE", f"/image-forks/{fork_id}", NoneType)

    async def snapshot_fork(self, fork_id: str, name: str) -> None:
        await self._call("PUT", f"/image-forks/{fork_id}/snapshots/{quote(name, safe='')}", NoneType)

    async def rollback_fork(self, fork_id: str, name: str) -> None:
        await self._call("PUT", f"/image-forks/{fork_id}/rollback/{quote(name, safe='')}", NoneType)

    async def hash_fork(self, fork_id: str) -> str:
        """Return the SHA-256 of a fork's whole content, as a guest reads it."""
        return await self._call("GET", f"/image-forks/{fork_id}/sha256", str)

    async def read_fork(self, fork_id: str, offset: int, length: int) -> bytes:
        return await self._bytes("GET", f"/image-forks/{fork_id}/content/{offset}/{length}")

    async def write_fork(self, fork_id: str, offset: int, data: bytes) -> None:
        await self._bytes("PUT", f"/image-forks/{fork_id}/content/{offset}", data)

    async def create_volume(self, request: CreateVolume) -> VolumeCreated:
        """Create a replicated volume with running downstairs."""
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
        """Give a VM's volume a new construction request, without Crucible's rules for when volumes may be replaced."""
        body = InstanceVCRReplace(vcr_json=vcr_json)
        return await self._call("PUT", f"/vms/{vm_id}/disks/{backend}/vcr", ReplaceResult, body)

    async def create_network(self, name: str) -> str:
        """Return the id of a network without ports."""
        return (await self._call("POST", "/networks", NetworkCreated, CreateNetwork(name=name))).id

    async def remove_network(self, network_id: str) -> None:
        await self._call("DELETE", f"/networks/{network_id}", NoneType)

    async def add_port(self, network_id: str, request: AddPort) -> str:
        """Return the path of the socket of a network card's port, on the agent's host."""
        return (await self._call("POST", f"/networks/{network_id}/ports", PortAdded, request)).path

    async def order_faults(self, network_id: str, faults: NetworkFaults) -> None:
        await self._call("PUT", f"/networks/{network_id}/faults", NoneType, faults)

    async def move_port(self, network_id: str, number: int, part: str | None) -> None:
        """Set the part of a network that a port's card is connected to; None while it moves."""
        await self._call("PUT", f"/networks/{network_id}/ports/{number}", NoneType, MovePort(part=part))

    async def connect_network(self, network_id: str, address: str, part: str) -> None:
        """Connect a network to its part on another host.

        :param address: where the agent finds that part.
        :param part: its id.
        """
        request = ConnectNetworks(address=address, part=part)
        await self._call("POST", f"/networks/{network_id}/trunks", NoneType, request)

    async def get_capture(self, network_id: str) -> bytes:
        """Return the latest frames as a pcap file; empty if there were none."""
        return await self._bytes("GET", f"/networks/{network_id}/capture")

    async def accept_peer(self, request: AcceptPeer) -> PeerAccepted:
        """Have the agent listen for the agent of another host."""
        return await self._call("POST", "/peers/accepted", PeerAccepted, request)

    async def connect_peer(self, request: ConnectPeer) -> str:
        """Return the path of a socket on the agent's host that leads to the agent of another host."""
        return (await self._call("POST", "/peers/connected", PeerConnected, request)).path

    async def has_file(self, path: str, size: int) -> bool:
        """Return whether the agent's host has a file whose path tells its content."""
        return (await self._call("POST", "/files/found", FileFound, FindFile(path=path, size=size))).is_there

    async def fetch_file(self, wanted: FetchFile, progress: Callable[[str], None]) -> None:
        """Have the agent fetch a file from another host, unless its host has it. Can take minutes.

        It ends only when `tell_digest` was called, too.

        :raises AgentError: when it does not arrive.
        """
        await self._last_line("/files/fetched", wanted, progress, FileFetched)

    async def tell_digest(self, file: FileDigest) -> None:
        """Tell the agent what the digest of a file should be that it fetches."""
        await self._call("POST", "/files/digest", NoneType, file)

    async def remove(self, resources: ResourceIds) -> None:
        """Remove VMs and then disks; return when they are gone. Skip any that are already gone."""
        await self._call("POST", "/removal", NoneType, resources)

    async def keep(self, request: Keep) -> KeptListed:
        """Transfer VMs and disks to the agent, so that they outlive this client."""
        return await self._call("POST", "/kept", KeptListed, request)

    async def _stream(self, path: str, needed: Any, progress: Callable[[str], None]) -> AsyncGenerator[StreamLine]:
        """Yield the lines of a response that are neither progress nor a failure."""
        content = msgspec.json.encode(needed)
        try:
            async with self._http.stream("POST", path, content=content, timeout_s=None) as answer:
                if answer.status != HTTPStatus.OK:
                    body = b"".join([data async for data in answer.data()])
                    raise self._decoder.error(answer.status, body, f"POST {path}")
                async for text in answer.lines():
                    line: StreamLine = self._decoder.decode(text, cast("type[StreamLine]", StreamLine), f"POST {path}")
                    if isinstance(line, ProgressMade):
                        progress(line.text)
                    elif isinstance(line, WorkFailed):
                        raise line.fault.to_error()
                    else:
                        yield line
        except OSError as error:
            raise await self._lost(error) from None

    async def _last_line(self, path: str, needed: Any, progress: Callable[[str], None], kind: type[T]) -> T:
        """Return the line that says what has been done.

        The response is read to its end, so that the connection can be used again.
        """
        last: T | None = None
        async with aclosing(self._stream(path, needed, progress)) as lines:
            async for line in lines:
                if isinstance(line, kind):
                    last = line
        if last is None:
            raise await self._lost("the answer ended early")
        return last

    async def _call(
        self, method: str, path: str, kind: type[T], body: Any = None, *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> T:
        content = None if body is None else msgspec.json.encode(body)
        answer = await self._bytes(method, path, content, timeout_s=timeout_s)
        return self._decoder.decode(answer or b"null", kind, f"{method} {path}")

    async def _bytes(
        self, method: str, path: str, content: bytes | None = None, *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> bytes:
        try:
            answer = await self._http.request(method, path, content=content, timeout_s=timeout_s)
        except OSError as error:
            raise await self._lost(error) from None
        if not answer.is_success:
            raise self._decoder.error(answer.status, answer.content, f"{method} {path}")
        return answer.content

    async def _lost(self, error: object) -> AgentError:
        return await self.endpoint("").lost_or(self._decoder.lost(error))
