"""Servers of the Propolis API on this host: the engine, and the one that the settings name. Each is really asked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...agent.servers.server_process import ServerProcess
from ...agent_api.boot_source import Firmware
from ...agent_api.server_program import ENGINE_PROGRAM, SERVER_HINT, ServerProgram
from ...engine.qemu.binary import find_firmware
from ...errors import ApiError, CapabilityMissing, PropolisError
from ...operating_system.child import NoJournal
from ...propolis_api import API_VERSION
from ...propolis_api.client import PropolisClient
from ...propolis_api.connection.endpoint import Endpoint
from ...settings import ENGINE, Settings
from ...storage.catalogs.catalog import read_catalogs
from ...storage.store import ArtifactStore
from ...storage.user_directories import default_artifact_dir
from .capability import Capability

__all__ = ["ServerReport", "survey_servers"]

START_TIMEOUT_S: Final = 30.0
NO_VM: Final = 424
"""The status with which a server answers that has no VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReport:
    """A server of the Propolis API.

    :param server: ``engine``, the path of a program, the name of an artifact, or a URL.
    :param serves: whether it serves the VMs of a run, by the settings.
    :param ok: whether it can.
    :param detail: the finding: what it answered, or an error.
    :param api_version: the version of the API that it accepted; None where it was not asked, or refused.
    :param remedy: what to do about it; None if there is nothing to do.
    """

    server: str
    serves: bool
    ok: bool
    detail: str
    api_version: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    ok: bool
    detail: str
    api_version: str | None = None
    remedy: str | None = None


async def survey_servers(settings: Settings, engine: Sequence[Capability]) -> tuple[ServerReport, ...]:
    """Report on the engine, and on the server that the settings name. Nothing is installed or left behind.

    :param engine: what the engine needs.
    """
    reports = [_engine(engine, serves=settings.server == ENGINE)]
    if settings.server != ENGINE:
        answer = await _query(settings)
        reports.append(
            ServerReport(
                server=str(settings.server),
                serves=True,
                ok=answer.ok,
                detail=answer.detail,
                api_version=answer.api_version,
                remedy=answer.remedy,
            )
        )
    return tuple(reports)


def _engine(needs: Sequence[Capability], *, serves: bool) -> ServerReport:
    missing = next((need for need in needs if not need.ok), None)
    if missing is not None:
        detail, remedy = f"{missing.name}: {missing.detail}", missing.remedy
        return ServerReport(server=ENGINE, serves=serves, ok=False, detail=detail, remedy=remedy)
    detail = f"QEMU {needs[0].detail.partition(' ')[0]}, {needs[1].detail.partition(':')[0]}"
    return ServerReport(server=ENGINE, serves=serves, ok=True, detail=detail, api_version=API_VERSION)


async def _query(settings: Settings) -> _Answer:
    try:
        if isinstance(settings.server, str) and "://" in settings.server:
            return await _query_url(settings.server)
        return await _query_program(settings)
    except PropolisError as error:
        return _Answer(ok=False, detail=error.message, remedy=error.hint)


async def _query_url(url: str) -> _Answer:
    try:
        endpoint = Endpoint.at(url)
    except ValueError as error:
        return _Answer(ok=False, detail=f"is no server: {error}", remedy=SERVER_HINT)
    return await _query_endpoint(endpoint)


async def _query_endpoint(endpoint: Endpoint) -> _Answer:
    """Ask a server for its VM, by this project's version of the API.

    :raises PropolisError: when it does not answer, does not speak the API, or refuses the version.
    """
    async with PropolisClient(endpoint) as client:
        try:
            instance = (await client.instance_get()).instance
        except ApiError as error:
            if error.status != NO_VM or error.request_id is None:
                raise
            return _Answer(ok=True, detail="answers, and has no VM", api_version=API_VERSION)
    detail = f"answers, and has the VM {instance.properties.name!r}, {instance.state.value}"
    return _Answer(ok=True, detail=detail, api_version=API_VERSION)


async def _query_program(settings: Settings) -> _Answer:
    """Start the program as an agent would, and ask it."""
    server = str(settings.server)
    artifact = read_catalogs(settings.artifacts or ()).find(server)
    if artifact is not None:
        store = ArtifactStore(settings.artifact_dir or default_artifact_dir())
        path = str(store.path_of(artifact))
        if not Path(path).is_file():
            return _Answer(ok=False, detail="not fetched yet", remedy=f"run `propolis artifacts fetch {server}`")
    elif server == ENGINE_PROGRAM:
        path = server
    elif (found := shutil.which(server)) is None:
        return _Answer(ok=False, detail="is not there, or no program", remedy=SERVER_HINT)
    else:
        path = str(Path(found).absolute())
    with tempfile.TemporaryDirectory(prefix="propolis-") as directory:
        (Path(directory) / "rom.fd").touch()
        try:
            return await _query_started(path, settings, Firmware(uefi=False), Path(directory))
        except CapabilityMissing:  # it has no BIOS, and a boot ROM that it does not read before there is a VM
            return await _query_started(path, settings, _firmware(settings, Path(directory)), Path(directory))


def _firmware(settings: Settings, directory: Path) -> Firmware:
    if isinstance(settings.boot_rom, Path):
        return Firmware(uefi=True, boot_rom=str(settings.boot_rom))
    return Firmware(uefi=True, boot_rom=None if find_firmware() else str(directory / "rom.fd"))


async def _query_started(path: str, settings: Settings, boot: Firmware, directory: Path) -> _Answer:
    async def own_options() -> Sequence[str]:
        qemu = ("--qemu", str(settings.qemu)) if settings.qemu else ()
        return *qemu, "--accelerator", settings.accelerator

    for name in ("server", "disks", "base"):
        (directory / name).mkdir(exist_ok=True)
    server = ServerProcess(
        ServerProgram(path=path, start_timeout_s=START_TIMEOUT_S),
        boot=boot,
        own_options=own_options,
        directory=directory / "server",
        disk_directory=directory / "disks",
        log_path=directory / "server.log",
        journal=NoJournal(),
        base=directory / "base",
    )
    try:
        await server.start()
        return await _query_endpoint(Endpoint(base_url=f"http://127.0.0.1:{server.port}"))
    finally:
        await server.close()
