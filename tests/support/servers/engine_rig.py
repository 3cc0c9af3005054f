"""A Propolis server inside the test, with a QEMU that is real or a small stand-in; HTTP without sockets."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import shlex
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
from server_program import ServerProgram, server_program
from starlette.types import Receive, Scope, Send

from pytest_propolis.agent_api.boot_source import BootSource, Firmware
from pytest_propolis.engine.qemu.binary import Qemu
from pytest_propolis.engine.qemu.machine import Machine
from pytest_propolis.engine.server.app import SERVER_KEY, engine_app
from pytest_propolis.engine.server.server import VmServer
from pytest_propolis.engine.server.server_config import ServerConfig
from pytest_propolis.engine.volumes.block_backend import BackendError, BackendFactory, ReplacementRefused
from pytest_propolis.operating_system.child import Journal, NoJournal
from pytest_propolis.propolis_api import (
    Board,
    Chipset,
    Component,
    CrucibleStorageBackend,
    CrucibleStorageBackendComponent,
    FromSpec,
    I440Fx,
    InstanceEnsureRequest,
    InstanceSpec,
    InstanceState,
    PciPath,
    ReplaceResult,
    SpecInit,
    SubVolumes,
    VirtioDisk,
    VirtioDiskComponent,
    VolumeInfo,
    VolumeStatus,
)
from pytest_propolis.vm.instance_spec.builder import instance_properties

__all__ = [
    "BACKEND",
    "DEADLINE_S",
    "FAKE_QEMU",
    "BlockingBackend",
    "EngineRig",
    "ProgramStateRig",
    "StateRig",
    "engine_rig",
    "program_state_rig",
]

FAKE_QEMU = Qemu(
    system=Path(__file__).with_name("fake_qemu.py"), img=Path("/nonexistent"), version=(7, 2, 0), origin="setting"
)
BACKEND = "disk-backend"
DEADLINE_S = 30.0
VOLUME_BYTES = 1 << 20


class BlockingBackend:
    """A volume that is unreachable until it gets another address, as if its downstairs were a black hole.

    A volume construction request is ``{"address": …, "generation": …}`` here. Only the address ``"here"`` answers, and
    ``"broken"`` can never be brought up.
    """

    def __init__(self, *, key: str, component: CrucibleStorageBackend, node_name: str) -> None:
        self.node = {"driver": "null-co", "node-name": node_name, "size": VOLUME_BYTES}
        self.vcr: Mapping[str, Any] = msgspec.json.decode(component.request_json)
        self.events: list[str] = []
        self.quiesced = False
        self.may_close = asyncio.Event()
        self.may_close.set()
        self._changed = asyncio.Event()

    async def start(self, machine: Machine) -> None:
        self.events.append("start")
        try:
            while self.vcr["address"] != "here":
                if self.vcr["address"] == "broken":
                    raise BackendError("this volume is broken")
                self._changed.clear()
                await self._changed.wait()
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        self.events.append("started")

    async def replace(self, vcr_json: str) -> ReplaceResult:
        new = msgspec.json.decode(vcr_json)
        if new["address"] == "silence":
            self.events.append("silent")
            await asyncio.Event().wait()
        if new["generation"] <= self.vcr["generation"]:
            raise ReplacementRefused("a lower generation")
        moved = new["address"] != self.vcr["address"]
        self.vcr = new
        self._changed.set()
        if new["address"] == "missing":
            return ReplaceResult.MISSING
        return ReplaceResult.STARTED if moved else ReplaceResult.VCR_MATCHES

    @property
    def status(self) -> VolumeStatus:
        return VolumeStatus(volume_info=VolumeInfo(volume=SubVolumes(sub_volumes=())))

    async def replace_unchecked(self, vcr_json: str) -> ReplaceResult:
        return await self.replace(vcr_json)

    async def snapshot(self, machine: Machine, snapshot_id: uuid.UUID) -> None:
        self.events.append(f"snapshot {snapshot_id}")

    async def record_clean(self, *, clean: bool) -> None:
        self.events.append(f"settled {clean}")

    async def quiesce(self, machine: Machine) -> None:
        self.quiesced = True

    async def reached(self, event: str) -> None:
        """Wait until something has happened to it."""
        async with asyncio.timeout(DEADLINE_S):
            while event not in self.events:
                await asyncio.sleep(0)

    async def close(self) -> None:
        self.events.append("closing")
        await self.may_close.wait()
        self.events.append("closed")


class StateRig(abc.ABC):
    """One server and a client of it. Where the server runs does not matter."""

    client: httpx.AsyncClient

    @property
    @abc.abstractmethod
    def pid(self) -> int:
        """The process id of QEMU, which runs."""

    @abc.abstractmethod
    async def type(self, *lines: str) -> None:
        """Have the guest of the fake QEMU do something."""

    async def ensure(self, *, address: str | None = None) -> httpx.Response:
        """Create a VM; with an address it gets a disk on a blocking backend."""
        return await self.client.put("/instance", content=msgspec.json.encode(ensure_request(address=address)))

    async def put(self, state: str) -> httpx.Response:
        return await self.client.put("/instance/state", json=state)

    async def replace(self, address: str, generation: int, *, backend: str = BACKEND) -> httpx.Response:
        vcr = vcr_json(address, generation)
        return await self.client.put(f"/instance/disk/{backend}/vcr", json={"vcr_json": vcr})

    async def monitor(self, gen: int) -> httpx.Response:
        return await self.client.request("GET", "/instance/state-monitor", json={"gen": gen})

    async def gen(self) -> int:
        return int((await self.monitor(0)).json()["gen"])

    async def wait_for(self, state: InstanceState, *, gen: int = 0) -> int:
        """Wait until the state monitor reports a state, from generation `gen` on; return its generation."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                answer = (await self.monitor(gen)).raise_for_status().json()
                if answer["state"] == state:
                    return int(answer["gen"])
                gen = answer["gen"] + 1


@dataclass(slots=True)
class EngineRig(StateRig):
    """A server in the test's process."""

    server: VmServer
    client: httpx.AsyncClient
    backends: list[BlockingBackend] = field(default_factory=list)

    @property
    def backend(self) -> BlockingBackend:
        """Return the backend of the latest VM."""
        return self.backends[-1]

    @property
    def pid(self) -> int:
        assert self.server.pid is not None
        return self.server.pid

    async def type(self, *lines: str) -> None:
        await self.server.serial().write(_typed(lines))


@dataclass(slots=True)
class ProgramStateRig(StateRig):
    """A server program over TCP."""

    program: ServerProgram
    client: httpx.AsyncClient

    @property
    def pid(self) -> int:
        process = self.program.process.pid
        (pid,) = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return int(pid)

    async def type(self, *lines: str) -> None:
        async with self.program.client.instance_serial() as console:
            await console.send(_typed(lines))


def _typed(lines: tuple[str, ...]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


@contextlib.asynccontextmanager
async def program_state_rig(directory: Path) -> AsyncIterator[ProgramStateRig]:
    """A server program that has the fake QEMU for VMs, and the real one for probes."""
    qemu = directory / "qemu-system-x86_64"
    fake = shlex.join([sys.executable, str(FAKE_QEMU.system)])
    qemu.write_text(
        f'#!/bin/sh\ncase "$*" in *com1*) exec {fake} "$@";; *) exec {shutil.which(qemu.name)} "$@"; esac\n'
    )
    qemu.chmod(0o700)
    async with server_program(
        *("bios", "127.0.0.1:0", "--accelerator", "tcg", "--qemu", qemu),
        environment={"XDG_RUNTIME_DIR": str(directory)},
    ) as program:
        async with httpx.AsyncClient(base_url=f"http://{program.address}", timeout=DEADLINE_S) as client:
            yield ProgramStateRig(program, client)
        status, errors = await program.end()
        assert status == 0, errors


def vcr_json(address: str, generation: int) -> str:
    return msgspec.json.encode({"address": address, "generation": generation}).decode()


def ensure_request(*, address: str | None = None, memory_mib: int = 64) -> InstanceEnsureRequest:
    components: dict[str, Component] = {}
    if address is not None:
        backend = CrucibleStorageBackend(readonly=False, request_json=vcr_json(address, 1))
        disk = VirtioDisk(backend_id=BACKEND, pci_path=PciPath(bus=0, device=4, function=0))
        components = {"disk": VirtioDiskComponent(disk), BACKEND: CrucibleStorageBackendComponent(backend)}
    board = Board(chipset=Chipset(type="i440_fx", value=I440Fx(enable_pcie=False)), cpus=1, memory_mb=memory_mib)
    spec = InstanceSpec(board=board, components=components)
    properties = instance_properties(f"vm-{uuid.uuid4()}")
    return InstanceEnsureRequest(properties=properties, init=SpecInit(FromSpec(spec=spec)))


@contextlib.asynccontextmanager
async def engine_rig(
    directory: Path,
    *,
    qemu: Qemu = FAKE_QEMU,
    boot: BootSource = Firmware(),  # noqa: B008 -- it is frozen
    with_backend: bool = True,
    log_path: Path | None = None,
    journal: Journal = NoJournal(),  # noqa: B008 -- it has no state
) -> AsyncIterator[EngineRig]:
    backends: list[BlockingBackend] = []

    def make(*, key: str, component: CrucibleStorageBackend, node_name: str) -> BlockingBackend:
        backends.append(BlockingBackend(key=key, component=component, node_name=node_name))
        return backends[-1]

    factories: dict[type, BackendFactory] = {CrucibleStorageBackend: make} if with_backend else {}
    server = VmServer(
        ServerConfig(
            tag="propolis-test",
            qemu=qemu,
            accelerator="tcg",
            boot=boot,
            directory=directory,
            log_path=log_path or directory / "qemu.log",
            journal=journal,
            backends=factories,
        )
    )
    engine = engine_app()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await engine({**scope, SERVER_KEY: server}, receive, send)

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        try:
            yield EngineRig(server, client, backends)
        finally:
            for backend in backends:
                backend.may_close.set()
            await server.close()
