"""The agent's account: which client owns what, and how it is released."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..engine.boot_source import DirectKernel
from ..engine.server import ServerConfig, VmServer
from ..errors import AgentError, ArtifactMissing, ConfigError
from ..propolis_api.endpoint import Endpoint
from ..storage.overlays import check_image, create_blank, create_overlay
from .bookkeeper import Bookkeeper
from .identity import ProcessIdentity
from .ledger import Entry, Ledger, Owner
from .platform import PlatformFinder
from .protocol import SOCKET_NAME, AgentConfig, CreateDisk, CreateVm, DiskCreated, VmListed

__all__ = ["Account", "OwnedVm"]

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class OwnedVm:
    """A Propolis server, its owner, and its place in the ledger."""

    id: str
    request: CreateVm
    client: str
    server: VmServer
    directory: Entry
    since: float


@dataclass(slots=True, kw_only=True)
class _Holdings:
    """What one client owns. Disks outlive VMs, because VMs hold them open."""

    books: Bookkeeper
    vms: dict[str, OwnedVm] = field(default_factory=dict)
    disks: dict[str, Entry] = field(default_factory=dict)
    left: bool = False


class Account:
    """All that the agent owns, by client. What is created is in the ledger first, and undone if its client is gone."""

    def __init__(self, config: AgentConfig, ledger: Ledger, platforms: PlatformFinder) -> None:
        self._config = config
        self._ledger = ledger
        self._platforms = platforms
        self._directory = Path(config.directory)
        self._clients: dict[str, _Holdings] = {}

    def admit(self, client: str, *, pid: int) -> None:
        """A client's lifeline is there: it may own things from now on.

        :param pid: its process on this host; 0 if it is on another one.
        """
        process = None
        with contextlib.suppress(ProcessLookupError):
            process = ProcessIdentity.of(pid) if pid else None
        self._clients[client] = _Holdings(books=Bookkeeper(self._ledger, Owner(client, process)))

    @property
    def is_empty(self) -> bool:
        return not self._clients

    def list_vms(self) -> list[VmListed]:
        return [_listed(vm) for holdings in self._clients.values() for vm in holdings.vms.values()]

    def find_vm(self, vm_id: str) -> OwnedVm | None:
        for holdings in self._clients.values():
            if vm := holdings.vms.get(vm_id):
                return vm
        return None

    async def create_vm(self, client: str, request: CreateVm) -> OwnedVm:
        """Make a Propolis server.

        :raises ConfigError: when the client's group has a VM of that name.
        :raises ArtifactMissing: when a file that it would boot from is not there.
        """
        platform = await self._platforms.find()
        holdings = self._holdings(client)
        _require_new_name(holdings, request)
        _check_boot_files(request)
        vm_id = secrets.token_hex(8)
        directory = self._directory / "vms" / vm_id
        with holdings.books.creating("directory", directory) as entry:
            directory.mkdir(parents=True, mode=0o700)
        server = VmServer(
            ServerConfig(
                mark=f"propolis-{self._config.run}-{vm_id}",
                qemu=platform.qemu,
                accelerator=platform.accelerator.name,
                boot=request.boot,
                directory=directory,
                log_path=Path(request.log_path),
                journal=holdings.books,
                address=Endpoint(base_url=f"http://agent/vms/{vm_id}", uds=self._directory / SOCKET_NAME).address,
            )
        )
        vm = OwnedVm(id=vm_id, request=request, client=client, server=server, directory=entry, since=time.time())
        holdings.vms[vm_id] = vm
        return vm

    async def remove_vm(self, client: str, vm_id: str) -> None:
        """End a VM and its server. Removing what is gone is fine."""
        holdings = self._holdings(client)
        if vm := holdings.vms.get(vm_id):
            await _close(vm, holdings)

    async def create_disk(self, client: str, request: CreateDisk) -> DiskCreated:
        """Make a copy-on-write fork of an image, or an empty disk.

        :raises ArtifactError: when the image is missing or broken.
        :raises ResourceExhausted: when there is no space left.
        """
        qemu_img = (await self._platforms.find()).qemu.img
        holdings = self._holdings(client)
        disk_id = secrets.token_hex(8)
        directory = self._directory / "disks"
        directory.mkdir(mode=0o700, exist_ok=True)
        path = directory / f"{disk_id}.qcow2"
        with holdings.books.creating("file", path) as entry:
            await _make_image(request, qemu_img, path)
            if holdings.left:
                raise AgentError(f"client {client!r} left while its disk was made")
        holdings.disks[disk_id] = entry
        return DiskCreated(id=disk_id, path=str(path))

    def remove_disk(self, client: str, disk_id: str) -> None:
        """Remove a fork. Removing what is gone is fine."""
        _remove_disk(self._holdings(client), disk_id)

    async def release(self, client: str) -> None:
        """Release all that a client owns: VMs first, then the disks that they held open."""
        holdings = self._clients.get(client)
        if holdings is None:
            return
        holdings.left = True
        await _all(partial(_close, vm, holdings) for vm in list(holdings.vms.values()))
        for disk_id in list(holdings.disks):
            _remove_disk(holdings, disk_id)
        self._clients.pop(client, None)

    async def release_all(self) -> None:
        await _all(partial(self.release, client) for client in list(self._clients))

    def _holdings(self, client: str) -> _Holdings:
        holdings = self._clients.get(client)
        if holdings is None or holdings.left:
            raise AgentError(
                f"client {client!r} has no lifeline", hint="open one first; it says when to release what you own"
            )
        return holdings


async def _close(vm: OwnedVm, holdings: _Holdings) -> None:
    await vm.server.close()
    if holdings.vms.pop(vm.id, None):
        holdings.books.gone(vm.directory)


def _remove_disk(holdings: _Holdings, disk_id: str) -> None:
    if entry := holdings.disks.pop(disk_id, None):
        Path(entry.what["path"]).unlink(missing_ok=True)
        holdings.books.gone(entry)


async def _make_image(request: CreateDisk, qemu_img: Path, path: Path) -> None:
    if request.image is None:
        await create_blank(qemu_img=qemu_img, image=path, size_bytes=request.size_bytes or 0)
        return
    image = Path(request.image)
    await check_image(qemu_img=qemu_img, image=image, image_format=request.image_format)
    await create_overlay(qemu_img=qemu_img, backing=image, overlay=path, backing_format=request.image_format)


def _require_new_name(holdings: _Holdings, request: CreateVm) -> None:
    for other in holdings.vms.values():
        if (other.request.name, other.request.group) == (request.name, request.group):
            raise ConfigError(
                f"there is a VM named {request.name!r} in {request.group} already",
                hint="give each VM of a test its own name",
            )


def _listed(vm: OwnedVm) -> VmListed:
    return VmListed(
        id=vm.id,
        name=vm.request.name,
        group=vm.request.group,
        client=vm.client,
        state=vm.server.state_name,
        pid=vm.server.pid,
        since=vm.since,
    )


def _check_boot_files(request: CreateVm) -> None:
    if isinstance(request.boot, DirectKernel):
        for file in (request.boot.kernel, request.boot.initrd):
            if file is not None and not Path(file).is_file():
                raise ArtifactMissing(f"{file} is not there", hint="run `propolis setup`, or correct the path")


async def _all(calls: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Do all of these at once, and all of them even if some fail."""
    for result in await asyncio.gather(*(call() for call in calls), return_exceptions=True):
        if isinstance(result, Exception):
            logger.error("release failed", exc_info=result)
