"""VMs whose servers are programs of their own, and servers that run already."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from server_program import server_program

from pytest_propolis import NodeGroup
from pytest_propolis.agent_api.messages import VmListed
from pytest_propolis.errors import (
    AgentError,
    ApiError,
    CapabilityMissing,
    ConfigError,
    ConsoleClosed,
    HostError,
    MigrationError,
    PropolisError,
)
from pytest_propolis.hosts.run_directory import base_directory
from pytest_propolis.ledger.survey import survey
from pytest_propolis.operating_system.python_processes import write_python_script
from pytest_propolis.propolis_api import FileStorageBackend, InstanceState
from pytest_propolis.session.run import Run
from pytest_propolis.settings import ENGINE
from pytest_propolis.storage.catalogs.catalog import read_catalogs
from pytest_propolis.vm.config import DataDisk
from pytest_propolis.vm.factory import VmFactory

PROGRAM: Final = "propolis-server-qemu"
PROGRAM_PATH: Final = str(Path(sys.executable).with_name(PROGRAM))
SMALL: Final[dict[str, Any]] = {"guest": "micro", "cpus": 1, "memory_mib": 128, "server": PROGRAM}
CORE_PATTERN: Final = Path("/proc/sys/kernel/core_pattern").read_text()
SLOW_START_S: Final = 60 if os.environ.get("HAZARDS") == "all" else 3


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a server program of Python code, which finds its address in ``address``."""

    def write(code: str, *, name: str = "server") -> Path:
        path = tmp_path / name
        write_python_script(
            path,
            "import sys, os, time, socket\n"
            "if '--help' in sys.argv: sys.exit(print('--kernel'))\n"
            "host, _, port = sys.argv[-1].rpartition(':')\naddress = (host, int(port))\n" + code,
        )
        return path

    return write


async def listed(factory: VmFactory) -> list[VmListed]:
    """The VMs of a test; the agent may have others, of tests in other processes."""
    return [vm for vm in await factory.agent.list_vms() if vm.group == factory.group]


async def test_a_guest_runs_at_a_server_of_its_own(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    assert vm.boot_kind == "cold"
    assert await vm.run("echo hello") == "hello"
    (found,) = await listed(vm_factory)
    assert (found.state, found.port) == ("Running", vm.endpoint.host_and_port[1])
    assert found.pid is not None
    assert os.getpgid(found.pid) == found.pid, "Ctrl-C at the terminal does not reach it"
    assert "listening on" in (vm.log_path.parent / "vm.server.log").read_text()
    await vm.stop()
    assert await vm.get_state() is InstanceState.DESTROYED


@pytest.mark.parametrize("server", [PROGRAM, ENGINE])
async def test_a_failed_request_is_in_the_log_that_its_error_names(vm_factory: VmFactory, server: str) -> None:
    vm = await vm_factory.create(**SMALL | {"server": server}, disks=(DataDisk(name="data", size_mib=1),))
    backend = vm.spec.components["data-backend"].component
    assert isinstance(backend, FileStorageBackend)
    Path(backend.path).unlink()
    with pytest.raises(ApiError) as caught:
        await vm.ensure()
    before, _, log = str(caught.value.hint).partition(" in ")
    assert before == f"look for request {caught.value.request_id}"
    assert Path(log).parent == vm.log_path.parent
    (line,) = [line for line in Path(log).read_text().splitlines() if f"request {caught.value.request_id}: " in line]
    assert "No such file or directory" in line


async def test_a_guest_migrates_between_programs_and_the_engine(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    await vm.run("echo here >/tmp/file")
    second = await vm_factory.successor(vm)
    await second.migrate_from(vm)
    assert second.server == PROGRAM
    third = await vm_factory.successor(second, server="engine")
    await third.migrate_from(second)
    fourth = await vm_factory.successor(third, server=PROGRAM)
    await fourth.migrate_from(third)
    assert await fourth.run("cat /tmp/file") == "here"


async def test_what_the_api_does_not_tell_is_refused_by_name(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(**SMALL)
    with pytest.raises(CapabilityMissing, match="its server has only the API"):
        await vm.extended_info()
    with pytest.raises(CapabilityMissing, match="it has no display"):
        await vm.screenshot()


async def test_a_migration_that_fails_tells_how_far_it_came(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL, fail_migration_exports=1)
    target = await vm_factory.successor(vm)
    with pytest.raises(MigrationError, match="the migration failed, when it had reached phase"):
        await target.migrate_from(vm)
    assert await vm.run("echo here") == "here"


async def test_the_end_of_a_server_ends_its_console(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    (found,) = await listed(vm_factory)
    assert found.pid is not None
    (directory,) = [
        run.directory for run in survey(base_directory()) if run.contents and run.contents.header.agent.pid == found.pid
    ]
    begun = asyncio.Event()
    command = asyncio.create_task(vm.run("echo begun; sleep 1000", on_output=lambda _: begun.set()))
    await begun.wait()
    os.kill(found.pid, signal.SIGKILL)
    with pytest.raises(PropolisError, match=r"console|connection"):
        await command
    async with asyncio.timeout(30):
        while (left := (await listed(vm_factory))[0]).pid is not None:  # the agent hears of it a moment later
            pass
    assert left.state is None
    await vm_factory.aclose()
    assert not directory.exists(), "what a killed server leaves is removed with its VM"


async def test_a_server_that_runs_already_is_used_and_not_ended(vm_factory: VmFactory) -> None:
    async with server_program("bios", "127.0.0.1:0", "--accelerator", "tcg") as server:
        url = f"http://{server.address}"
        vm = await vm_factory.create(guest="micro", server=url)
        await vm.launch()
        await vm.wait_for_state("Running")
        with pytest.raises(ConfigError, match="has a VM already: 'vm', Running"):
            await vm_factory.create("other", guest="micro", server=url)
        await vm.stop()
        again = await vm_factory.create("again", guest="micro", server=url)
        await again.launch()
        await again.wait_for_state("Running")
    with pytest.raises(AgentError, match="does not answer"):
        await vm_factory.create("late", guest="micro", server=url)


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("propolis-serve-qemu", "the server program 'propolis-serve-qemu' does not exist"),
        (Path("/etc/passwd"), "the server program '/etc/passwd' is not a program"),
        ("ftp://127.0.0.1:1", "has no scheme, host and port"),
    ],
)
async def test_what_is_no_server_is_an_error_that_names_it(
    vm_factory: VmFactory, server: str | Path, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await vm_factory.start(**(SMALL | {"server": server}))


async def test_what_only_the_engine_can_do_is_refused_before_anything_starts(vm_factory: VmFactory) -> None:
    with pytest.raises(CapabilityMissing, match="display=True needs the engine"):
        await vm_factory.start(**SMALL, display=True)
    with pytest.raises(CapabilityMissing, match='channel="port" needs the engine'):
        await vm_factory.start(**SMALL, channel="port")
    assert await listed(vm_factory) == []


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ({"channel": "port"}, r'a successor with guest ports needs the engine.*\n.*channel="console"'),
        (
            {"channel": "console", "display": True},
            r"a successor with a display needs the engine.*\n.*without a",
        ),
    ],
    ids=["ports", "display"],
)
async def test_a_vm_with_devices_that_a_program_lacks_has_no_successor_there(
    vm_factory: VmFactory, device: dict[str, Any], message: str
) -> None:
    vm = await vm_factory.create(**SMALL | {"server": "engine"} | device)
    with pytest.raises(CapabilityMissing, match=message):
        await vm_factory.successor(vm, server=PROGRAM)
    assert [there.name for there in await listed(vm_factory)] == [vm.name]


async def test_a_guest_at_a_program_cannot_be_a_node(vm_factory: VmFactory, nodes: NodeGroup) -> None:
    vm = await vm_factory.create(**SMALL)
    with pytest.raises(CapabilityMissing, match="as_node needs the engine"):
        async with vm.as_node(nodes):
            pass
    assert vm.name not in nodes.members()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('no /dev/vmm')", r"ended with status 1 before it answered\n *\| no /dev/vmm"),
        ("os.abort()", "ended with status -6 before it answered"),
        ("time.sleep(1000)", "has not answered for 2 s"),
        ("s = socket.create_server(address)\ntime.sleep(1000)", "has not answered for 2 s"),
        (
            "s = socket.create_server(address)\n"
            "while True:\n c = s.accept()[0]; c.recv(9999)\n"
            " c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi')",
            "does not speak the Propolis API",
        ),
        (
            "s = socket.create_server(address)\n"
            "while True:\n c = s.accept()[0]; c.recv(9999)\n c.sendall(b'garbage'); c.close()",
            "has not answered for 2 s",
        ),
    ],
    ids=["ends", "aborts", "hangs", "is silent", "another API", "garbage"],
)
async def test_a_server_that_does_not_start_is_an_error_and_nothing_is_left(
    vm_factory: VmFactory, script: Callable[[str], Path], code: str, message: str
) -> None:
    with pytest.raises(HostError, match=message) as caught:
        await vm_factory.start(**(SMALL | {"server": script(code), "boot_timeout_s": 2.0}))
    assert str(script("")) in str(caught.value)
    assert await listed(vm_factory) == []


CLOSES_THE_CONSOLE: Final = """
import asyncio
from pytest_propolis.cli import serve
from pytest_propolis.engine.server import app
whole = app.serve_serial
async def cut(websocket, port, offset):
    serving = asyncio.create_task(whole(websocket, port, offset))
    while b"cut here" not in port.history.read(max(0, offset - 100), 1000):
        await port.history.wait_beyond(offset)
        offset = port.history.end
    await websocket.close(CODE)
    serving.cancel()
app.serve_serial = cut
serve.main()
"""
"""A server that goes on and closes the console alone, when the guest has shown certain words."""


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1000, "its server has closed the console"), (1011, r"its server or its agent has gone \(code 1011\)")],
)
async def test_a_server_that_closes_the_console_alone_ends_what_waits_for_it(
    vm_factory: VmFactory, script: Callable[[str], Path], code: int, reason: str
) -> None:
    program = script(CLOSES_THE_CONSOLE.replace("CODE", str(code)))
    vm = await vm_factory.start(**(SMALL | {"server": program}))
    with pytest.raises(ConsoleClosed, match=reason):
        await vm.run("echo cut here; sleep 1000")
    assert await vm.get_state() is InstanceState.RUNNING
    with pytest.raises(ConsoleClosed, match=reason):
        await vm.wait_for_serial_output("anything")
    await vm_factory.aclose()
    assert await listed(vm_factory) == []


@pytest.mark.skipif(not CORE_PATTERN.startswith("core"), reason="the kernel writes core dumps elsewhere")
async def test_the_core_dump_of_a_server_is_kept_beside_its_log(
    vm_factory: VmFactory, script: Callable[[str], Path]
) -> None:
    program = script("import resource\nresource.setrlimit(resource.RLIMIT_CORE, (1 << 30, -1))\nos.abort()")
    with pytest.raises(HostError, match="ended with status -6 before it answered"):
        await vm_factory.start(**(SMALL | {"server": program}))
    await vm_factory.aclose()
    (core,) = vm_factory._log_dir.glob("vm.server.core*")
    assert core.read_bytes().startswith(b"\x7fELF")


async def test_a_server_whose_port_is_taken_is_given_another(
    vm_factory: VmFactory, script: Callable[[str], Path], tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    program = script(
        f"import pathlib\nif not pathlib.Path({str(taken)!r}).exists():\n"
        f" pathlib.Path({str(taken)!r}).touch(); sys.exit('Address already in use (os error 98)')\n"
        f"os.execv({PROGRAM_PATH!r}, [{PROGRAM!r}, *sys.argv[1:]])"
    )
    vm = await vm_factory.start(**(SMALL | {"server": program}))
    assert await vm.run("echo hello") == "hello"


async def test_a_server_program_may_be_an_artifact(
    propolis: Run, script: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = script(f"os.execv({PROGRAM_PATH!r}, [{PROGRAM!r}, *sys.argv[1:]])")
    program.chmod(0o600)
    catalog = tmp_path / "artifacts.toml"
    catalog.write_text(
        "remote_server_uris = []\n[artifacts.my-server]\nfilename = 'server'\nkind = 'propolis_server'\n"
        f"[artifacts.my-server.source.local_path]\npath = '{program.parent}'\n"
        f"sha256 = '{hashlib.sha256(program.read_bytes()).hexdigest()}'\n"
    )
    monkeypatch.setattr(propolis, "catalog", read_catalogs([catalog]))
    async with propolis.vm_factory() as factory:
        vm = await factory.start(**(SMALL | {"server": "my-server"}))
        assert await vm.run("echo hello") == "hello"


@pytest.mark.parametrize("server", [Path("server"), "./server", "~/server"], ids=["path", "text", "home"])
async def test_the_path_of_a_server_means_what_it_means_in_the_test(
    vm_factory: VmFactory,
    script: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: str | Path,
) -> None:
    script(f"open(__file__ + '.ran', 'w')\nos.execv({PROGRAM_PATH!r}, [{PROGRAM!r}, *sys.argv[1:]])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    await vm_factory.create(**(SMALL | {"server": server}))
    assert (tmp_path / "server.ran").exists()


async def test_a_server_that_takes_its_time_is_waited_for(vm_factory: VmFactory, script: Callable[[str], Path]) -> None:
    """HAZARDS=all has it take a minute."""
    program = script(f"time.sleep({SLOW_START_S})\nos.execv({PROGRAM_PATH!r}, [{PROGRAM!r}, *sys.argv[1:]])")
    vm = await vm_factory.start(**(SMALL | {"server": program}))
    assert await vm.run("echo hello") == "hello"


async def test_a_server_that_boots_from_a_boot_rom_alone_says_what_it_cannot_boot(
    vm_factory: VmFactory, tmp_path: Path
) -> None:
    program = tmp_path / "propolis-server"
    program.write_text("#!/bin/sh\necho 'Usage: propolis-server run <BOOTROM_PATH> <PROPOLIS_ADDR>'\n")
    program.chmod(0o700)
    with pytest.raises(CapabilityMissing, match="boots from a boot ROM, and cannot boot a kernel without"):
        await vm_factory.start(**(SMALL | {"server": program}))
