"""`propolis-server-qemu` as a process of its own, and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from migration_rig import spec_of

from pytest_propolis.propolis_api import (
    FromMigration,
    FromSpec,
    InstanceEnsureRequest,
    InstanceSpec,
    InstanceState,
    InstanceStateRequested,
    MigrationTargetInit,
    SerialPort,
    SerialPortComponent,
    SerialPortNumber,
    SpecInit,
)
from pytest_propolis.propolis_api.client import PropolisClient
from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.vm.instance_spec.builder import instance_properties

DEADLINE_S: Final = 60
RUN: Final = "from pytest_propolis.cli.serve import main; main()"
LISTENING: Final = b"listening on "


@dataclass(slots=True)
class ServerProgram:
    """A server that listens, and its client."""

    process: asyncio.subprocess.Process
    client: PropolisClient
    address: str

    async def ensure(self, spec: InstanceSpec) -> None:
        await self.client.instance_ensure(_request(SpecInit(FromSpec(spec=spec))))

    async def migrate_from(self, source: ServerProgram) -> None:
        init = FromMigration(migration_id=uuid.uuid4(), replace_components={}, src_addr=source.address)
        await self.client.instance_ensure(_request(MigrationTargetInit(init)))

    async def run(self) -> None:
        await self.client.instance_state_put(InstanceStateRequested.RUN)
        await self.wait_for(InstanceState.RUNNING)

    async def wait_for(self, state: InstanceState) -> None:
        gen = 0
        async with asyncio.timeout(DEADLINE_S):
            while (answer := await self.client.instance_state_monitor(gen)).state is not state:
                gen = answer.gen + 1

    async def wait_for_output(self, text: bytes) -> None:
        """Wait until the guest has written something to its serial line."""
        async with asyncio.timeout(DEADLINE_S):
            while text not in bytes((await self.client.instance_serial_history(from_start=0)).data):
                await asyncio.sleep(0.1)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit status and the standard error."""
        self.process.send_signal(number)
        return await ended(self.process)


def machine() -> InstanceSpec:
    return spec_of(memory_mib=256, com1=SerialPortComponent(SerialPort(num=SerialPortNumber.COM1)))


@contextlib.asynccontextmanager
async def server_program(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[ServerProgram]:
    """Start ``propolis-server-qemu run``, and wait until it listens."""
    process = await start(*arguments, environment=environment)
    try:
        address = await _address(process)
        async with PropolisClient(Endpoint.at(address)) as client:
            yield ServerProgram(process, client, address)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def start(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, "run", *arguments),
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    async with asyncio.timeout(DEADLINE_S):
        _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE_S):
        while line := await process.stderr.readline():
            if line.startswith(LISTENING):
                return _endpoint(line.removeprefix(LISTENING).partition(b";")[0].decode())
    raise AssertionError((await ended(process))[1])


def _endpoint(address: str) -> str:
    if address.startswith("unix:"):
        return Endpoint(base_url="http://server", uds=Path(address.removeprefix("unix:"))).address
    return address


def _request(init: Any) -> InstanceEnsureRequest:
    return InstanceEnsureRequest(properties=instance_properties(f"vm-{uuid.uuid4()}"), init=init)
