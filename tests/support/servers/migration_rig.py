"""Propolis servers inside the test, which migrate VMs without a guest system to each other. Real QEMU, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from pytest_propolis.agent_api.boot_source import Firmware
from pytest_propolis.engine.qemu.binary import find_qemu
from pytest_propolis.engine.qemu.memory import GuestMemory
from pytest_propolis.engine.server.app import SERVER_KEY, engine_app
from pytest_propolis.engine.server.server import VmServer
from pytest_propolis.engine.server.server_config import ServerConfig
from pytest_propolis.operating_system.child import NoJournal
from pytest_propolis.propolis_api import (
    Board,
    Chipset,
    Component,
    FromMigration,
    FromSpec,
    I440Fx,
    InstanceEnsureRequest,
    InstanceSpec,
    InstanceState,
    InstanceStateRequested,
    MigrationFailureInjector,
    MigrationFailureInjectorComponent,
    MigrationState,
    MigrationTargetInit,
    ReplacementComponent,
    SpecInit,
)
from pytest_propolis.propolis_api.client import PropolisClient
from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.vm.instance_spec.builder import instance_properties

__all__ = [
    "MigrationRig",
    "Node",
    "RemoteNode",
    "injector",
    "migrate",
    "migrated",
    "migration_rig",
    "serving",
    "spec_of",
]

DEADLINE_S = 60.0
MEMORY_MIB = 64


@dataclass(slots=True)
class RemoteNode:
    """A server that is known only by its client."""

    client: PropolisClient

    @property
    def address(self) -> str:
        return self.client.endpoint.address

    async def create(self, spec: InstanceSpec) -> None:
        await self.client.instance_ensure(_ensure(SpecInit(FromSpec(spec=spec))))

    async def run(self, spec: InstanceSpec) -> None:
        """Create a VM and run it."""
        await self.create(spec)
        await self.client.instance_state_put(InstanceStateRequested.RUN)
        await self.wait_for(InstanceState.RUNNING)

    async def stop(self) -> None:
        await self.client.instance_state_put(InstanceStateRequested.STOP)
        await self.wait_for(InstanceState.DESTROYED)

    async def migrate_from(
        self,
        address: str,
        *,
        replace: Mapping[str, ReplacementComponent] | None = None,
        migration_id: uuid.UUID | None = None,
    ) -> None:
        """Request a migration into this server, and return while it is in progress."""
        init = FromMigration(
            migration_id=migration_id or uuid.uuid4(), replace_components=dict(replace or {}), src_addr=address
        )
        await self.client.instance_ensure(_ensure(MigrationTargetInit(init)))

    async def state(self) -> InstanceState:
        return (await self.client.instance_get()).instance.state

    async def wait_for(self, state: InstanceState) -> None:
        await self._wait(lambda answer: answer.state is state)

    async def wait_out(self, phase: MigrationState) -> None:
        """Wait until an outgoing migration is in a phase."""
        await self._wait(
            lambda answer: answer.migration.migration_out and answer.migration.migration_out.state is phase
        )

    async def _wait(self, good: Any) -> None:
        gen = 0
        async with asyncio.timeout(DEADLINE_S):
            while not good(answer := await self.client.instance_state_monitor(gen)):
                gen = answer.gen + 1


@dataclass(slots=True)
class Node(RemoteNode):
    """One server in this process, and its client."""

    server: VmServer


@dataclass(slots=True)
class MigrationRig:
    """Any number of servers behind one socket."""

    directory: Path
    socket: Path
    nodes: dict[str, Node] = field(default_factory=dict)

    async def node(self, name: str, *, memory: GuestMemory | None = None, **options: Any) -> Node:
        endpoint = Endpoint(base_url=f"http://agent/vms/{name}", uds=self.socket)
        directory = self.directory / name
        directory.mkdir()
        config = {
            "tag": f"propolis-test-{name}",
            "qemu": await find_qemu(None),
            "accelerator": "tcg",
            "boot": Firmware(),
            "directory": directory,
            "log_path": self.directory / f"{name}.log",
            "journal": NoJournal(),
            "address": endpoint.address,
            "memory": memory,
            **options,
        }
        self.nodes[name] = Node(server=VmServer(ServerConfig(**config)), client=PropolisClient(endpoint, vm=name))
        return self.nodes[name]

    async def aclose(self) -> None:
        for node in self.nodes.values():
            await node.server.close()
            await node.client.aclose()


@contextlib.asynccontextmanager
async def migration_rig(directory: Path) -> AsyncIterator[MigrationRig]:
    with tempfile.TemporaryDirectory() as short:
        rig = MigrationRig(directory, Path(short) / "agent.sock")
        engine = engine_app()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope[SERVER_KEY] = rig.nodes[scope["path_params"]["name"]].server
            await engine(scope, receive, send)

        async with serving(Starlette(routes=[Mount("/vms/{name}", app=app)]), rig.socket):
            try:
                yield rig
            finally:
                await rig.aclose()


@contextlib.asynccontextmanager
async def serving(asgi: Any, socket: Path) -> AsyncIterator[None]:
    """Serve an application over a socket, as the agent does."""
    server = uvicorn.Server(
        uvicorn.Config(
            asgi, uds=str(socket), log_config=None, lifespan="off", ws="websockets-sansio", timeout_graceful_shutdown=1
        )
    )
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def migrate(source: RemoteNode, target: RemoteNode) -> None:
    await target.migrate_from(source.address)
    await migrated(source, target)


async def migrated(source: RemoteNode, target: RemoteNode) -> None:
    """Wait until the guest runs at the target, and its source is gone."""
    await target.wait_for(InstanceState.RUNNING)
    await source.wait_for(InstanceState.DESTROYED)


def spec_of(*, memory_mib: int = MEMORY_MIB, **components: Component) -> InstanceSpec:
    board = Board(chipset=Chipset(type="i440_fx", value=I440Fx(enable_pcie=False)), cpus=1, memory_mb=memory_mib)
    return InstanceSpec(board=board, components=components)


def injector(*, exports: int = 0, imports: int = 0) -> MigrationFailureInjectorComponent:
    return MigrationFailureInjectorComponent(MigrationFailureInjector(fail_exports=exports, fail_imports=imports))


def _ensure(init: SpecInit | MigrationTargetInit) -> InstanceEnsureRequest:
    return InstanceEnsureRequest(properties=instance_properties(f"vm-{uuid.uuid4()}"), init=init)
