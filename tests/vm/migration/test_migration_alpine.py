"""A whole system migrates: processes, jobs, disks. One Alpine, which each test takes one server further."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pytest_propolis.errors import MigrationError
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.hosts.run_directory import run_token
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.session.run import Run
from pytest_propolis.vm.config import DataDisk
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.lifecycle import Migrate, StopAndStart, lifecycle
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERIAL_NUMBERS = 8000


class Traveller:
    """Where the guest is now."""

    def __init__(self, factory: VmFactory, vm: TestVm) -> None:
        self.factory = factory
        self.vm = vm

    async def migrate(self, factory: VmFactory | None = None) -> TestVm:
        name = f"vm-{secrets.token_hex(4)}"
        target = await (factory or self.factory).successor(self.vm, name)
        await target.migrate_from(self.vm)
        await target.wait_for_state(InstanceState.RUNNING)
        await self.vm.wait_for_state(InstanceState.DESTROYED)
        self.vm = target
        return target


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traveller(propolis: Run) -> AsyncIterator[Traveller]:
    async with propolis.vm_factory() as factory:
        disks = (DataDisk(name="data", size_mib=16),)
        vm = await factory.start("vm", guest="alpine", memory_mib=256, disks=disks)
        yield Traveller(factory, vm)


@pytest.mark.slow
async def test_an_export_that_fails_leaves_the_guest_where_it_is(traveller: Traveller) -> None:
    vm = await traveller.factory.start("failing", guest="alpine", memory_mib=256, fail_migration_exports=1)
    target = await traveller.factory.successor(vm, "never")
    with pytest.raises(MigrationError, match=r"the failure injector failed the export|the migration failed, when"):
        await target.migrate_from(vm)
    await vm.wait_for_state(InstanceState.RUNNING)
    assert await vm.run("echo alive") == "alive"
    heir = await traveller.factory.successor(vm, "heir")
    await heir.migrate_from(vm)
    assert await heir.run("echo still alive") == "still alive"
    await heir.stop()


@pytest.mark.slow
async def test_a_suspended_process_goes_on_where_it_was(traveller: Traveller) -> None:
    async with traveller.vm.interactive() as console:
        await console.send("sh -c 'word=kept; echo u''p; read line; echo got $word $line'\n")
        await console.wait_for("\nup\n", timeout_s=60)
        await console.send(b"\x1a")
        await console.wait_for("Stopped", timeout_s=60)
        vm = await traveller.migrate()
        await vm.console.send("fg\n")
        await vm.console.wait_for("read line", timeout_s=60)
        await vm.console.send("there\n")
        await vm.console.wait_for("got kept there", timeout_s=60)


async def test_files_and_the_page_cache_go_along(traveller: Traveller) -> None:
    await traveller.vm.run("echo unsynced > /root/file; dd if=/dev/urandom of=/root/big bs=1M count=4 2>/dev/null")
    before = await traveller.vm.run("md5sum /root/file /root/big")
    vm = await traveller.migrate()
    await vm.run("sync; echo 3 > /proc/sys/vm/drop_caches")
    assert await vm.run("md5sum /root/file /root/big") == before


async def test_a_disk_that_is_written_all_the_while_loses_and_reorders_nothing(traveller: Traveller) -> None:
    writer = (
        "n=0; while ! [ -e /tmp/stop ]; do n=$((n+1));"
        " printf '%-512s' $n | dd of=/dev/vdb bs=512 seek=$((n%30000)) oflag=direct conv=fsync,notrunc 2>/tmp/dd"
        " || { cat /tmp/dd > /tmp/error; break; }; echo $n > /tmp/written; done"
    )
    await traveller.vm.run(f"({writer}) > /dev/null 2>&1 &")
    seen = 0
    for _ in range(3):
        vm = await traveller.migrate()
        # The file is empty for a moment, each time that it is written.
        look = f'n=$(cat /tmp/written); [ "${{n:-0}}" -gt {seen + 20} ]'
        command = f"until {look}; do sleep 0.1; done; echo $n"
        seen = int(await vm.run(command, timeout_s=120))
    await vm.run("touch /tmp/stop; wait; sync; echo 3 > /proc/sys/vm/drop_caches")
    assert await vm.run("cat /tmp/error 2>/dev/null", check=False) == ""
    last = int(await vm.run("cat /tmp/written"))
    text = await vm.run(f"dd if=/dev/vdb bs=512 skip=1 count={last} 2>/dev/null | tr -s ' ' '\\n'", timeout_s=120)
    assert [int(number) for number in text.split()] == list(range(1, last + 1))


async def test_the_console_of_a_busy_guest_loses_and_reorders_nothing(traveller: Traveller) -> None:
    command = f"n=0; while [ $n -lt {SERIAL_NUMBERS} ]; do n=$((n+1)); echo =$n=; done > /dev/ttyS0"
    start = traveller.vm.console.transcript.end
    writing = asyncio.create_task(traveller.vm.run(command, timeout_s=240))
    await traveller.vm.wait_for_serial_output("=500=")
    while not writing.done():
        await traveller.migrate()
    await writing
    await traveller.vm.wait_for_serial_output(f"={SERIAL_NUMBERS}=")
    numbers = [int(number) for number in re.findall(r"=(\d+)=", traveller.vm.console.transcript.since(start))]
    assert numbers == list(range(1, SERIAL_NUMBERS + 1))


async def test_a_guest_migrates_to_another_agent_and_back(traveller: Traveller, propolis: Run) -> None:
    await traveller.vm.run("echo kept > /tmp/word")
    other = LocalHost(propolis.settings, run_id=run_token(None))
    try:
        async with VmFactory.on(
            [other],
            settings=propolis.settings,
            guests=propolis.guests,
            group="other",
            log_dir=propolis.log_dir / "other",
            progress=lambda text: None,
            made=lambda vm: None,
            artifact=lambda name: None,
        ) as elsewhere:
            vm = await traveller.migrate(elsewhere)
            assert await vm.run("cat /tmp/word") == "kept"
            vm = await traveller.migrate()
            assert await vm.run("cat /tmp/word") == "kept"
    finally:
        other.close()


@pytest.mark.slow
async def test_lifecycle_actions_keep_what_is_on_the_disk(traveller: Traveller) -> None:
    await traveller.vm.run("echo lasting > /root/lasting; sync")

    async def check(vm: TestVm) -> None:
        assert await vm.run("cat /root/lasting") == "lasting"

    await traveller.migrate()
    traveller.vm = await lifecycle(traveller.factory, traveller.vm, [Migrate(), StopAndStart()], check)
