"""Commands in a real guest, over a real serial line. One guest for all of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pytest_propolis.errors import CommandFailed, CommandTimeout, ConsoleTimeout
from pytest_propolis.session.run import Run
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm(propolis: Run) -> AsyncIterator[TestVm]:
    async with propolis.vm_factory() as factory:
        yield await factory.start(guest="micro", cpus=1, memory_mib=256)


async def test_output_comes_back_without_the_last_newline(vm: TestVm) -> None:
    assert await vm.run("echo hello") == "hello"
    assert await vm.run("uname -s; echo; echo") == "Linux"


async def test_output_can_be_had_while_the_command_runs(vm: TestVm) -> None:
    seen: list[str] = []
    came = asyncio.Event()

    def see(text: str) -> None:
        seen.append(text)
        if "\n" in text:
            came.set()

    await vm.run("rm -f /tmp/go; mkfifo /tmp/go")
    command = asyncio.create_task(vm.run("echo gr\u00fcn; read -r word </tmp/go; echo last", on_output=see))
    await came.wait()
    assert not command.done()
    command.cancel()
    await asyncio.wait([command])
    assert "".join(seen).startswith("gr\u00fcn")
    assert await vm.run("printf 'gr\u00fcn'; rm /tmp/go", on_output=see) == "gr\u00fcn"
    assert "".join(seen).endswith("gr\u00fcn")


async def test_a_failed_command_is_an_error_unless_told_otherwise(vm: TestVm) -> None:
    with pytest.raises(CommandFailed) as caught:
        await vm.run("echo why; false")
    assert (caught.value.status, caught.value.output, caught.value.vm) == (1, b"why\n", vm.name)
    assert await vm.run("echo why; false", check=False) == "why"
    assert (await vm.run_result("exit 3")).status == 3


async def test_directory_and_variables_stay(vm: TestVm) -> None:
    await vm.run("cd /sys; kept=1")
    assert await vm.run('echo "$PWD $kept"; cd /root') == "/sys 1"


async def test_a_command_of_64_kib_arrives_whole(vm: TestVm) -> None:
    text = "".join(f"line {n} of a long command\n" for n in range(2600))[: 1 << 16]
    digest = hashlib.md5(text.encode()).hexdigest()
    assert await vm.run(f"printf %s '{text}' | md5sum") == f"{digest}  -"


async def test_all_byte_values_come_back_to_the_byte(vm: TestVm) -> None:
    octal = "".join(f"\\{value:03o}" for value in range(256))
    assert await vm.run_bytes(f"printf '{octal}'") == bytes(range(256))


async def test_random_bytes_come_back_to_the_byte(vm: TestVm) -> None:
    await vm.run("head -c 65536 /dev/urandom > /tmp/random")
    content = await vm.run_bytes("cat /tmp/random")
    assert len(content) == 65536
    assert await vm.run("md5sum < /tmp/random") == f"{hashlib.md5(content).hexdigest()}  -"


async def test_a_command_that_kills_the_shell_leaves_a_usable_one(vm: TestVm) -> None:
    assert (await vm.run_result("kill -9 $$")).status == 137
    assert (await vm.run_result("exec sh -c 'exit 9'")).status == 9
    assert await vm.run("echo alive") == "alive"


async def test_a_command_that_takes_too_long_leaves_a_usable_shell(vm: TestVm) -> None:
    with pytest.raises(CommandTimeout):
        await vm.run("sleep 600", timeout_s=0.5)
    assert await vm.run("echo alive") == "alive"


async def test_a_cancelled_command_leaves_a_usable_shell(vm: TestVm) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await vm.run("while :; do :; done")
    assert await vm.run("echo alive") == "alive"


async def test_the_interactive_console_has_job_control(vm: TestVm) -> None:
    async with vm.interactive() as console:
        await console.send('sh -c \'echo in" "front; kill -STOP $$; echo resu""med; exec sleep 600\'\n')
        await console.wait_for("in front", timeout_s=30)
        await console.wait_for("Stopped", timeout_s=30)
        await console.send("fg\n")
        await console.wait_for("resumed\n", timeout_s=30)
        await console.send(b"\x03")
        await console.wait_for("# ", timeout_s=30)
        await console.send("echo $((6 * 7))\n")
        await console.wait_for("\n42\n", timeout_s=30)
    assert await vm.run("echo alive") == "alive"


async def test_an_interactive_prompt_can_be_answered(vm: TestVm) -> None:
    async with vm.interactive() as console:
        await console.send("printf 'your na''me: '; read -r name; echo \"hello $name\"\n")
        await console.wait_for("your name: ", timeout_s=30)
        await console.send("guest\n")
        await console.wait_for("hello guest", timeout_s=30)


async def test_what_does_not_appear_is_an_error_with_the_console(vm: TestVm) -> None:
    await vm.run("echo last line shown")
    with pytest.raises(ConsoleTimeout) as caught:
        await vm.wait_for_serial_output("no such words", timeout_s=0.2)
    assert "last line shown" in str(caught.value)
    assert str(vm.log_path) in str(caught.value)


async def test_the_log_has_commands_and_output(vm: TestVm) -> None:
    await vm.run("echo a word for the log")
    log = vm.log_path.read_text()
    assert "[propolis] run: echo a word for the log\na word for the log\n" in log


# These end the guest's life as it was, and stand last.


async def test_a_graceful_reboot_gives_a_fresh_guest(vm: TestVm) -> None:
    await vm.run("touch /tmp/here")
    await vm.graceful_reboot()
    assert await vm.run("ls /tmp/here", check=False) == "ls: /tmp/here: No such file or directory"


async def test_a_reset_gives_a_fresh_guest(vm: TestVm) -> None:
    await vm.run("touch /tmp/here")
    await vm.reset()
    await vm.wait_to_boot()
    assert await vm.run("ls /tmp/here", check=False) == "ls: /tmp/here: No such file or directory"
