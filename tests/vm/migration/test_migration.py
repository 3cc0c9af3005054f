"""A migrating guest, with its console and the shell there, also under load."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Literal

import pytest
import pytest_asyncio
from memory_writer import found_damage, rounds_beyond, start_writing

from pytest_propolis.agent_api.migration_report import MemoryTransfer
from pytest_propolis.console.console import Console
from pytest_propolis.errors import CommandFailed, ConfigError, ConsoleError, ConsoleTimeout, MigrationError
from pytest_propolis.propolis_api import InstanceState, MigrationState
from pytest_propolis.session.run import Run
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.lifecycle import Migrate, Reset, lifecycle
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEMORY_MIB = 128


@pytest_asyncio.fixture(loop_scope="module")
async def factory(propolis: Run) -> AsyncIterator[VmFactory]:
    async with propolis.vm_factory() as factory:
        yield factory


@pytest_asyncio.fixture(loop_scope="module")
async def vm(factory: VmFactory) -> TestVm:
    return await factory.start("vm", guest="micro", cpus=1, memory_mib=MEMORY_MIB, channel="console")


async def test_the_guest_lives_on_at_the_target_and_the_source_is_destroyed(factory: VmFactory, vm: TestVm) -> None:
    await vm.run("word=before; mkdir /tmp/d; cd /tmp/d")
    target = await factory.successor(vm)
    await target.migrate_from(vm)
    assert await target.run("echo $word; pwd") == "before\n/tmp/d"
    await target.wait_for_state(InstanceState.RUNNING)
    await vm.wait_for_state(InstanceState.DESTROYED)
    came, left = (await target.get_migration_state()).migration_in, (await vm.get_migration_state()).migration_out
    assert came
    assert left
    assert (came.state, left.state) == (MigrationState.FINISH, MigrationState.FINISH)
    assert came.id == left.id


async def test_errors_after_a_migration_name_the_vm_that_the_guest_is_in(factory: VmFactory, vm: TestVm) -> None:
    target = await factory.successor(vm, name="elsewhere")
    await target.migrate_from(vm)
    with pytest.raises(CommandFailed) as failed:
        await target.run("false")
    with pytest.raises(ConsoleTimeout) as waited:
        await target.wait_for_serial_output("never shown", timeout_s=0.1)
    assert (failed.value.vm, waited.value.vm) == ("elsewhere", "elsewhere")


async def test_a_vm_that_a_guest_has_migrated_to_names_the_log_that_its_console_goes_on_in(
    factory: VmFactory, vm: TestVm
) -> None:
    target = await factory.successor(vm, name="elsewhere")
    await target.migrate_from(vm)
    seen = asyncio.create_task(target.wait_for_serial_output("shown there"))
    await target.run("echo shown there >/dev/console")
    await seen
    with pytest.raises(CommandFailed) as failed:
        await target.run("false")
    assert "shown there" in target.log_path.read_text()
    assert failed.value.log_path == str(target.log_path)


async def test_each_side_has_its_own_metadata(factory: VmFactory, vm: TestVm) -> None:
    target = await factory.successor(vm)
    await target.migrate_from(vm)
    there = (await target.client.instance_get()).instance.properties
    here = (await vm.client.instance_get()).instance.properties
    assert (here, there) == (vm.properties, target.properties)
    assert here.metadata.sled_id != there.metadata.sled_id
    assert (here.id, here.metadata.project_id) == (there.id, there.metadata.project_id)


async def test_a_command_that_is_under_way_ends_at_the_target(factory: VmFactory, vm: TestVm) -> None:
    waiting = asyncio.create_task(vm.run("echo begun; while ! [ -e /tmp/go ]; do sleep 0.1; done; echo ended"))
    await vm.wait_for_serial_output("begun")
    target = await factory.successor(vm)
    await target.migrate_from(vm)
    assert not waiting.done()
    await target.console.send("\x1c")
    await asyncio.gather(waiting, return_exceptions=True)
    assert await target.run("echo next") == "next"


async def test_the_console_loses_repeats_and_reorders_nothing_over_a_chain(factory: VmFactory, vm: TestVm) -> None:
    writing = asyncio.create_task(vm.run("n=0; while [ $n -lt 4000 ]; do n=$((n+1)); echo =$n=; done", timeout_s=240))
    await vm.wait_for_serial_output("=50=")
    for _ in range(3):
        target = await factory.successor(vm)
        await target.migrate_from(vm)
        await target.wait_for_state(InstanceState.RUNNING)
        vm = target
    numbers = [int(number) for number in re.findall(r"=(\d+)=", await writing)]
    assert numbers == list(range(1, 4001))


async def test_what_is_typed_during_a_migration_reaches_the_guest_once(factory: VmFactory, vm: TestVm) -> None:
    """The guest reads slowly: most of the input is queued before its UART when it leaves."""
    lines = "".join(f"line {n}\n" for n in range(200))
    target = await factory.successor(vm)
    async with vm.interactive() as console:
        await console.send("stty -echo; echo rea''dy; sleep 1; cat > /tmp/typed; echo fin''ished\n")
        await console.wait_for("ready", timeout_s=30)
        await console.send(lines)
        await target.migrate_from(vm)
        await console.send("\x04")
        await console.wait_for("finished", timeout_s=60)
    typed = await target.run("cat /tmp/typed")
    assert typed.splitlines() == lines.splitlines()


@pytest.mark.slow
async def test_what_is_typed_all_the_while_reaches_the_guest_once_and_in_order(factory: VmFactory, vm: TestVm) -> None:
    over = asyncio.Event()

    async def type_on(console: Console) -> int:
        number = 0
        while not over.is_set():
            number += 1
            await console.send(f"line {number}\n")
            await asyncio.sleep(0)
        return number

    async with vm.interactive() as console:
        await console.send("stty -echo; echo rea''dy; cat > /tmp/typed; echo fin''ished\n")
        await console.wait_for("ready", timeout_s=30)
        typing = asyncio.create_task(type_on(console))
        for _ in range(5):
            target = await factory.successor(vm)
            await target.migrate_from(vm)
            vm = target
        over.set()
        typed = await typing
        await console.send("\x04")
        await console.wait_for("finished", timeout_s=120)
    command = "awk '$0 != \"line \" NR { print NR, $0 }' /tmp/typed; tail -n 1 /tmp/typed"
    assert await vm.run(command) == f"line {typed}"


async def test_the_history_goes_along(factory: VmFactory, vm: TestVm) -> None:
    await vm.run("echo a sentence of the past")
    before = await vm.get_serial_console_history(max_bytes=1 << 20)
    target = await factory.successor(vm)
    await target.migrate_from(vm)
    after = await target.get_serial_console_history(max_bytes=1 << 20)
    assert after.content.startswith(before.content)
    assert b"a sentence of the past" in before.content


async def test_lifecycle_actions_follow_each_other(factory: VmFactory, vm: TestVm) -> None:
    names = []

    async def check(vm: TestVm) -> None:
        names.append(vm.name)
        assert await vm.run("nproc") == "1"

    last = await lifecycle(factory, vm, [Migrate(), Reset(), Migrate()], check)
    assert names == ["vm-2", "vm-2", "vm-3"]
    assert last.name == "vm-3"


async def test_a_failed_migration_says_why_and_the_source_keeps_its_console(factory: VmFactory, vm: TestVm) -> None:
    target = await factory.successor(vm, fail_migration_imports=1)
    with pytest.raises(MigrationError, match="'migration-failure' is not in the source's spec"):
        await target.migrate_from(vm)
    assert await vm.run("echo alive") == "alive"


async def test_a_vm_that_has_migrated_has_no_console_any_more(factory: VmFactory, vm: TestVm) -> None:
    target = await factory.successor(vm)
    await target.migrate_from(vm)
    with pytest.raises(ConsoleError):
        await vm.send_serial("x")


async def test_two_successors_of_one_name_are_refused(factory: VmFactory, vm: TestVm) -> None:
    await factory.successor(vm, "heir")
    with pytest.raises(ConfigError, match="'heir'"):
        await factory.successor(vm, "heir")


@pytest.mark.requires(server="engine")
@pytest.mark.parametrize("boot", [pytest.param("cold", marks=pytest.mark.slow), "warm"])
async def test_the_memory_of_a_guest_that_writes_all_the_while_arrives_intact(
    factory: VmFactory, boot: Literal["cold", "warm"]
) -> None:
    """Memory of one that boots is in a file that the target maps. That of a fork is its own, and copied."""
    vm = await factory.start("writer", guest="micro", cpus=1, memory_mib=MEMORY_MIB, boot=boot)
    await start_writing(vm)
    rounds = await rounds_beyond(vm, 10)
    talk = Talk(vm)
    async with talk.going_on():
        for hop in range(3):
            target = await factory.successor(vm)
            await target.migrate_from(vm)
            vm = talk.vm = target
            assert (await _way(vm) is not MemoryTransfer.SHARED_MEMORY) is (boot == "warm" and hop == 0)
            rounds = await rounds_beyond(vm, rounds + 10)
            assert await found_damage(vm) == ""
    assert talk.answers == [str(number) for number in range(1, len(talk.answers) + 1)]


class Talk:
    """A shell that runs commands one after the other, on whichever server its guest is."""

    def __init__(self, vm: TestVm) -> None:
        self.vm = vm
        self.answers: list[str] = []

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        over = asyncio.Event()
        asking = asyncio.create_task(self._ask(over))
        try:
            yield
        finally:
            over.set()
            await asking

    async def _ask(self, over: asyncio.Event) -> None:
        while not over.is_set():
            self.answers.append(await self.vm.run("asked=$((asked+1)); echo $asked"))


async def _way(vm: TestVm) -> MemoryTransfer | None:
    assert vm._migrations
    came = (await vm._migrations()).migration_in
    assert came
    return came.memory_transfer
