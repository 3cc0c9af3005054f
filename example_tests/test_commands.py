"""What can be done with commands. These tests share one VM: see `shared_vm` in conftest.py."""

import pytest

from pytest_propolis import CommandFailed, CommandTimeout, TestVm

# The tests run in the event loop that the VM was made in.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_it_is_alpine(shared_vm: TestVm) -> None:
    assert "Alpine Linux" in await shared_vm.run("cat /etc/os-release")


async def test_commands_share_one_shell(shared_vm: TestVm) -> None:
    await shared_vm.run("cd /etc; greeting=hello")
    assert await shared_vm.run("echo $greeting from $PWD") == "hello from /etc"


async def test_a_command_may_have_many_lines(shared_vm: TestVm) -> None:
    script = """
        total=0
        for number in 1 2 3; do
            total=$((total + number))
        done
        echo $total
    """
    assert await shared_vm.run(script) == "6"


async def test_output_may_be_binary(shared_vm: TestVm) -> None:
    assert await shared_vm.run_bytes(r"printf '\000\001\377'") == b"\x00\x01\xff"


async def test_a_status_can_be_looked_at(shared_vm: TestVm) -> None:
    result = await shared_vm.run_result("test -e /no/such/file")
    assert result.status == 1


async def test_a_failing_command_raises(shared_vm: TestVm) -> None:
    with pytest.raises(CommandFailed) as caught:
        await shared_vm.run("echo about to fail; exit 7")
    assert caught.value.status == 7
    assert caught.value.output == b"about to fail\n"


async def test_a_command_that_takes_too_long_is_interrupted(shared_vm: TestVm) -> None:
    with pytest.raises(CommandTimeout):
        await shared_vm.run("sleep 1000", timeout_s=1)
    assert await shared_vm.run("echo still here") == "still here"
