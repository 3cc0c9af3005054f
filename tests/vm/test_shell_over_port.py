"""Commands over a guest port, through resets, reboots and migrations of a VM."""

from __future__ import annotations

import asyncio
import hashlib
import re

import pytest

from pytest_propolis import CommandFailed, CommandTimeout, ConsoleClosed, GuestPanicked, ShellError, ShellLost
from pytest_propolis.console.transports.port_transport import CLOSED_AFTER_S, PortTransport
from pytest_propolis.settings import BootKind
from pytest_propolis.vm.config import VmConfigFields
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.lifecycle import Migrate

pytestmark = pytest.mark.requires(server="engine")

SMALL: VmConfigFields = {"guest": "micro", "cpus": 1, "memory_mib": 256, "channel": "port"}


@pytest.mark.parametrize("boot", ["cold", "warm"])
async def test_commands_go_over_the_port(vm_factory: VmFactory, boot: BootKind) -> None:
    wanted: VmConfigFields = {**SMALL, "boot": boot}
    vm = await vm_factory.start(**wanted)
    assert vm.boot_kind == boot
    await vm.run("cd /tmp; greeting=hello")
    assert await vm.run('echo "$greeting from $PWD"') == "hello from /tmp"
    assert (await vm.run("readlink /proc/self/fd/1")).startswith("pipe:")
    result = await vm.run_result("echo out; echo err >&2; (exit 3)")
    assert (result.status, result.output) == (3, b"out\nerr\n")
    apart = await vm.run_result("echo out; echo err >&2; exit 3", separate_stderr=True)
    assert (apart.status, apart.stdout, apart.stderr) == (3, b"out\n", b"err\n")
    with pytest.raises(CommandFailed, match="status 7"):
        await vm.run("exit 7")
    assert await vm.run("exec echo replaced") == "replaced"
    numbers = " ".join(map(str, range(20_000)))
    assert await vm.run(f"echo {numbers}") == numbers
    every_byte = bytes(range(256)) * 1000
    await vm.put(every_byte, "/tmp/bytes")
    assert await vm.run_bytes("cat /tmp/bytes") == every_byte


async def test_a_command_that_does_not_end_is_interrupted_with_its_programs(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    with pytest.raises(CommandTimeout, match="working"):
        await vm.run("echo working; sleep 4321 | cat; echo never", timeout_s=1)
    assert await vm.run("ps | grep -c '[s]leep 4321'", check=False) == "0"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await vm.run("while :; do echo y; done")
    assert await vm.run("echo alive") == "alive"


async def test_what_copies_output_to_the_port_may_be_killed(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    with pytest.raises(ShellLost, match="the guest's shells were killed"):
        await vm.run("killall -9 cat; echo more; sleep 1000")
    assert await vm.run("echo alive") == "alive"
    with pytest.raises(CommandTimeout):
        await vm.run("sleep 1000", timeout_s=1)
    assert await vm.run("echo interrupted") == "interrupted"


@pytest.mark.parametrize(
    "command",
    ["killall -9 cat", "(sleep 0.5; killall -9 cat) >/dev/null 2>&1 </dev/null &"],
    ids=["while it runs", "while nothing runs"],
)
async def test_a_loop_that_a_new_login_starts_is_not_ended_with_the_one_before(
    vm_factory: VmFactory, command: str
) -> None:
    vm = await vm_factory.start(**SMALL)
    loop = vm.shell._loop
    transport = loop._transport
    assert isinstance(transport, PortTransport)
    closed, report = asyncio.Event(), transport._line.on_closed
    assert report is not None

    def report_and_note() -> None:
        report()
        closed.set()

    transport._line.on_closed = report_and_note
    await vm.shell.run_detached(command)
    async with asyncio.timeout(60):
        await closed.wait()
    await loop.start(shell="sh", timeout_s=60, session=loop.session)
    assert await vm.run(f"sleep {CLOSED_AFTER_S + 1}; echo alive") == "alive"


async def test_what_the_kernel_writes_is_in_no_output_and_no_mark(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    loud = 'for n in $(seq 200); do echo "<1>loud $n" >/dev/kmsg; echo $n; done'
    assert (await vm.run(loud)).split() == [str(number) for number in range(1, 201)]
    await vm.wait_for_serial_output("loud 200", timeout_s=20)
    assert "loud" not in await vm.run("echo quiet")
    log = vm.log_path.read_text()
    assert "[propolis] run: echo quiet\nquiet\n" in log


async def test_the_console_is_there_for_a_person_while_commands_run(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    async with vm.interactive() as console:
        await console.send("echo $((6*7)); tty\n")
        await console.wait_for("\n42\n/dev/ttyS0\n", timeout_s=20)
        assert await vm.run("echo beside") == "beside"
        with pytest.raises(CommandTimeout):
            await vm.run("sleep 1000", timeout_s=1)
        await console.send("echo $((7*7))\n")
        await console.wait_for("\n49\n", timeout_s=20)
    assert await vm.run("echo after") == "after"
    await vm.release_console()
    await vm.console.send("echo $((8*8))\n")
    await vm.wait_for_serial_output("\n64\n", timeout_s=20)


async def test_commands_go_on_after_resets_reboots_and_a_new_start(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    await vm.run("variable=fork")
    await vm.reset()
    await vm.wait_to_boot()
    assert (await vm.run('echo "<$variable>"; readlink /proc/self/fd/1')).startswith("<>\npipe:")
    await vm.graceful_reboot()
    assert await vm.run("echo rebooted") == "rebooted"
    await vm.stop()
    with pytest.raises(ConsoleClosed):
        await vm.run("true")
    await vm.boot()
    assert await vm.run("echo started") == "started"


async def test_a_reset_in_the_middle_of_a_command_ends_the_wait_and_what_was_sent(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    runs = asyncio.Event()
    running = asyncio.create_task(vm.run("echo; sleep 1000", on_output=lambda _: runs.set()))
    await runs.wait()
    waiting = asyncio.create_task(vm.run("echo never >/dev/ttyS0"))
    await asyncio.sleep(0)  # it waits for its turn now
    await vm.reset()
    for task in (running, waiting):
        with pytest.raises(ShellLost, match="the VM was reset"):
            await task
    await vm.wait_to_boot()
    assert await vm.run("echo up") == "up"
    async with vm.expect_reset():
        with pytest.raises(ShellLost, match="reset itself"):
            await vm.run("echo b >/proc/sysrq-trigger; sleep 1000")
    await vm.wait_to_boot()
    assert await vm.run("echo up") == "up"
    assert "never" not in vm.log_path.read_text().replace("echo never", "")


async def test_the_end_of_the_vm_and_a_panic_end_a_command(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    async with vm.expect_panic():
        with pytest.raises(GuestPanicked):
            await vm.run("echo c >/proc/sysrq-trigger")
    await vm.reset()
    await vm.wait_to_boot()
    running = asyncio.create_task(vm.run("sleep 1000"))
    await asyncio.sleep(0)
    await vm.stop()
    with pytest.raises(ConsoleClosed):
        await running


async def test_a_command_and_its_output_survive_migrations(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    await vm.run("variable=kept")
    seen = asyncio.Event()
    lines = 100_000
    counting = f'for n in $(seq {lines}); do echo "$n"; done'
    running = asyncio.create_task(vm.run(counting, on_output=lambda _: seen.set()))
    await seen.wait()
    heir = await Migrate().perform(vm_factory, vm)
    assert not running.done(), "it was to run meanwhile"
    heir = await Migrate().perform(vm_factory, heir)
    output = await running
    expected = "\n".join(map(str, range(1, lines + 1)))
    assert hashlib.sha256(output.encode()).digest() == hashlib.sha256(expected.encode()).digest()
    assert await heir.run("echo $variable") == "kept"
    with pytest.raises(CommandTimeout):
        await heir.run("sleep 1000", timeout_s=1)


async def test_commands_that_are_sent_while_the_guest_migrates_run_once(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    shell = vm.shell
    migrating = True

    async def count() -> int:
        number = 0
        while migrating:
            number += 1
            text = f"{number}: " + "x" * 30_000
            result = await shell.run(f"echo {number} >>/tmp/ran; echo '{text}'", timeout_s=60)
            assert result.output == f"{text}\n".encode()
        return number

    counting = asyncio.create_task(count())
    for _ in range(3):
        vm = await Migrate().perform(vm_factory, vm)
    migrating = False
    number = await counting
    assert await vm.run("cat /tmp/ran") == "\n".join(map(str, range(1, number + 1)))


@pytest.mark.slow
async def test_a_guest_without_the_driver_is_an_error_that_names_it(vm_factory: VmFactory) -> None:
    without_driver: VmConfigFields = {**SMALL, "kernel_arguments": "initcall_blacklist=virtio_console_init"}
    vm = await vm_factory.create(**without_driver)
    with pytest.raises(ShellError, match=re.escape("no port org.propolis.9: its kernel needs virtio_console")):
        await vm.boot()
