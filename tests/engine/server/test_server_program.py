"""`propolis serve`: the engine as a program with the command line of `propolis-server`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from propolis_command import propolis
from server_program import DEADLINE_S, ServerProgram, ended, machine, server_program, start

from pytest_propolis.agent.servers.standalone import Address, listening
from pytest_propolis.engine.qemu.binary import find_firmware
from pytest_propolis.errors import AgentError, ApiError
from pytest_propolis.guests.micro import Micro
from pytest_propolis.propolis_api import API_VERSION, InstanceState, InstanceStateRequested
from pytest_propolis.propolis_api.client import PropolisClient
from pytest_propolis.propolis_api.connection import transport
from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.storage.user_directories import default_artifact_dir

BIOS = ("bios", "127.0.0.1:0", "--accelerator", "tcg")


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers have their directories."""
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory) / "propolis"


@pytest.fixture
async def micro() -> tuple[str | Path, ...]:
    """The options that boot the guest `micro`."""
    store = ArtifactStore(default_artifact_dir())
    image = Micro.image
    assert image.kernel
    assert image.initrd
    kernel, initrd = [await store.get(artifact, lambda text: None) for artifact in (image.kernel, image.initrd)]
    return ("--kernel", kernel, "--initrd", initrd, "--append", image.command_line)


@pytest.fixture
async def server(base: Path) -> AsyncIterator[ServerProgram]:
    async with server_program(*BIOS) as server:
        yield server


def test_what_it_sends_does_not_wait_for_acknowledgements() -> None:
    with listening(Address(host="127.0.0.1")) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def qemus(base: Path) -> list[Path]:
    """The QEMU processes of servers whose directories are below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"XDG_RUNTIME_DIR={base.parent}".encode() in (process / "environ").read_bytes().split(b"\0")
            if ours and b"qemu-system" in (process / "cmdline").read_bytes():
                found.append(process)
    return found


async def test_a_guest_boots_on_a_server_of_its_own(base: Path, micro: tuple[str | Path, ...]) -> None:
    async with server_program("none", "127.0.0.1:0", *micro) as server:
        await server.ensure(machine())
        await server.run()
        await server.wait_for_output(b"# ")
        status, errors = await server.end()
    assert status == 0, errors
    assert qemus(base) == []
    assert list(base.iterdir()) == []


async def test_an_instance_ends_and_another_can_be_made(server: ServerProgram, base: Path) -> None:
    for _ in range(2):
        await server.ensure(machine())
        await server.run()
        with pytest.raises(ApiError, match="409"):
            await server.ensure(machine())
        await server.client.instance_state_put(InstanceStateRequested.STOP)
        await server.wait_for(InstanceState.DESTROYED)
    assert qemus(base) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_the_vm_and_leaves_nothing(
    server: ServerProgram, base: Path, number: signal.Signals
) -> None:
    await server.ensure(machine())
    await server.run()
    assert len(qemus(base)) == 1
    status, errors = await server.end(number)
    assert status == 0, errors
    assert qemus(base) == []
    assert list(base.iterdir()) == []


async def test_what_a_killed_server_leaves_is_collected(server: ServerProgram, base: Path) -> None:
    await server.ensure(machine())
    await server.run()
    await server.end(signal.SIGKILL)
    await asyncio.to_thread(propolis, "gc")
    assert qemus(base) == []
    assert list(base.iterdir()) == []


async def test_it_listens_on_a_unix_socket_of_the_user_alone(base: Path, tmp_path: Path) -> None:
    path = base.parent / "server.sock"
    async with server_program("bios", f"unix:{path}") as server:
        assert path.stat().st_mode & 0o777 == 0o600
        await server.ensure(machine())
        await server.end(signal.SIGKILL)
    assert path.exists()
    async with server_program("bios", f"unix:{path}") as server:  # what a killed one has left is in no one's way
        status, errors = await ended(await start("bios", f"unix:{path}"))
        assert status == 1
        assert "Address already in use" in errors
        assert (await server.end())[0] == 0
    assert not path.exists()


async def test_a_guest_migrates_from_one_server_to_another(base: Path, micro: tuple[str | Path, ...]) -> None:
    options = ("none", "127.0.0.1:0", *micro)
    async with server_program(*options) as source, server_program(*options) as target:
        await source.ensure(machine())
        await source.run()
        await source.wait_for_output(b"# ")
        await target.migrate_from(source)
        await target.wait_for(InstanceState.RUNNING)
        await source.wait_for(InstanceState.DESTROYED)
        assert [(await program.end())[0] for program in (target, source)] == [0, 0]
    assert qemus(base) == []
    assert list(base.iterdir()) == []


@pytest.mark.skipif(find_firmware() is None, reason="OVMF is not installed (package ovmf)")
async def test_a_boot_rom_of_the_callers_own_is_started(base: Path, tmp_path: Path) -> None:
    firmware = find_firmware()
    assert firmware is not None
    rom = tmp_path / "rom.fd"
    rom.write_bytes(firmware.code.read_bytes())
    async with server_program(rom, "127.0.0.1:0") as server:
        await server.ensure(machine())
        await server.run()
        (qemu,) = qemus(base)
        assert str(rom).encode() in (qemu / "cmdline").read_bytes()
        assert (await server.end())[0] == 0


async def test_the_display_is_at_the_address_for_vnc(base: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        vnc = f"127.0.0.1:{probe.getsockname()[1]}"
    async with server_program("bios", "127.0.0.1:0", vnc) as server:
        await server.ensure(machine())
        host, _, port = vnc.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert (await reader.readexactly(12)).startswith(b"RFB 003.")
        assert (await server.end())[0] == 0
        assert await reader.read() == b""
        writer.close()
    assert list(base.iterdir()) == []


async def test_the_version_of_the_boot_rom_is_accepted_and_logged(base: Path) -> None:
    process = await start(*BIOS, "--bootrom-version", "1.2.3")
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE_S):
        lines = [line async for line in _until_it_listens(process.stderr)]
    assert any("the boot ROM's version is 1.2.3" in line for line in lines)
    process.terminate()
    assert (await ended(process))[0] == 0
    assert list(base.iterdir()) == []


async def _until_it_listens(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    while (line := (await stream.readline()).decode()) and not line.startswith("listening on"):
        yield line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Missing argument 'BOOTROM_PATH'"),
        (("bios",), "Missing argument 'IP:PORT'"),
        (("bios", "nowhere"), "'nowhere' is neither IP:PORT nor unix:PATH"),
        (("bios", "127.0.0.1:70000"), "'127.0.0.1:70000' is neither"),
        (("/no/such/rom", "127.0.0.1:0"), "'/no/such/rom' is not a file"),
        (("bios", "127.0.0.1:0", "127.0.0.1:0", "more"), "unexpected extra argument"),
        (("bios", "127.0.0.1:0", "--log-level", "loud"), "'loud' is not one of"),
        (("bios", "127.0.0.1:0", "--append", "quiet"), "need --kernel"),
    ],
)
async def test_a_bad_command_line_ends_with_usage(base: Path, arguments: tuple[str, ...], complaint: str) -> None:
    status, errors = await ended(await start(*arguments))
    assert status == 2
    assert errors.startswith("Usage: ")
    assert complaint in errors
    assert not base.exists()


async def test_a_port_that_is_taken_is_one_clear_error(base: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        status, errors = await ended(await start("bios", address))
    assert status == 1
    assert f"{address} cannot be listened on: Address already in use" in errors
    assert "Traceback" not in errors
    assert list(base.iterdir()) == []


async def test_a_server_that_has_ended_does_not_answer(server: ServerProgram) -> None:
    await server.end()
    with pytest.raises(AgentError):
        await server.client.instance_get()


async def test_an_error_says_that_the_server_is_older_than_the_client(
    server: ServerProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "VERSION_HEADERS", {"api-version": "99.0.0"})
    async with PropolisClient(Endpoint.at(server.address)) as client:
        with pytest.raises(ApiError, match=r"does not support this API version: 99\.0\.0") as caught:
            await client.instance_get()
    assert caught.value.status == 400
    assert f"the server speaks versions up to {API_VERSION} of the API" in str(caught.value.hint)
