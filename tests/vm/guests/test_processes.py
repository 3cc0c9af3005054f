"""Programs in a real guest with streams of their own. One guest for all of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pytest_propolis import CapabilityMissing, CommandTimeout
from pytest_propolis.session.run import Run
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.requires(server="engine")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm(propolis: Run) -> AsyncIterator[TestVm]:
    async with propolis.vm_factory() as factory:
        yield await factory.start(guest="micro", cpus=1, memory_mib=256, channel="port")


async def test_lines_come_while_the_program_runs(vm: TestVm) -> None:
    async with vm.process("echo one; read answer; echo $answer; echo three; exit 3") as process:
        lines = aiter(process.stdout)
        assert await anext(lines) == "one"
        await process.stdin.write("two\n")
        assert [line async for line in lines] == ["two", "three"]
        assert await process.wait() == 3


async def test_standard_error_comes_apart(vm: TestVm) -> None:
    async with vm.process("echo out; echo err >&2; printf rest") as process:
        assert await process.wait() == 0
        assert await process.stdout.read() == b"out\nrest"
        assert await process.stderr.read() == b"err\n"


async def test_a_program_reads_its_input_to_the_end(vm: TestVm) -> None:
    content = os.urandom(3_000_000)
    async with vm.process("sha256sum") as process:
        await process.stdin.write(content)
        await process.stdin.aclose()
        assert (await process.stdout.read()).split()[0].decode() == hashlib.sha256(content).hexdigest()


async def test_signals_reach_the_program_and_what_it_has_started(vm: TestVm) -> None:
    async with vm.process("trap 'echo caught; exit 5' INT; echo up; sleep 1000 & wait") as process:
        async for line in process.stdout:
            if line == "up":
                await process.signal("INT")
            else:
                assert line == "caught"
        assert await process.wait() == 5
    async with vm.process("sleep 1000") as process:
        await process.signal("TERM")
        assert await process.wait() == 128 + 15


async def test_programs_run_beside_each_other_and_beside_commands(vm: TestVm) -> None:
    async with vm.process("cat") as first, vm.process("cat") as second, vm.process("cat") as third:
        for process in (third, first, second):
            await process.stdin.write(f"{process.pid}\n")
        assert await vm.run("echo beside") == "beside"
        for process in (first, second, third):
            assert await anext(aiter(process.stdout)) == str(process.pid)
            await process.stdin.aclose()
            assert await process.wait() == 0


async def test_more_programs_than_ports_take_turns(vm: TestVm) -> None:
    async def squared(number: int) -> int:
        async with vm.process(f"echo $(({number} * {number}))") as process:
            return int(await process.stdout.read())

    assert await asyncio.gather(*map(squared, range(9))) == [number * number for number in range(9)]


async def test_much_output_that_nothing_reads_does_not_keep_it_from_ending(vm: TestVm) -> None:
    async with vm.process("head -c 5000000 /dev/zero; echo done >&2") as process:
        assert await process.wait(timeout_s=60) == 0


async def test_the_end_of_the_block_kills_it(vm: TestVm) -> None:
    async with vm.process("sleep 4321 & sleep 4321") as process:
        with pytest.raises(CommandTimeout, match="did not end"):
            await process.wait(timeout_s=0.2)
    assert await vm.run("ps | grep -c '[4]321'", check=False) == "0"


async def test_directory_and_exported_variables_are_those_of_the_shared_shell(vm: TestVm) -> None:
    await vm.run("cd /sys; export GREETING=hello")
    async with vm.process("echo $GREETING from $PWD") as process:
        assert await process.stdout.read() == b"hello from /sys\n"
    await vm.run("cd; unset GREETING")


async def test_a_machine_without_ports_says_how_to_get_them(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, channel="console")
    with pytest.raises(CapabilityMissing, match="channel"):
        async with vm.process("true"):
            pass
