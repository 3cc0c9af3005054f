"""A guest boots, and takes commands."""

from pytest_propolis import InstanceState, TestVm


async def test_hello(test_vm: TestVm) -> None:
    """`test_vm` is a fresh VM with the default guest, booted and logged in."""
    assert await test_vm.run("echo hello") == "hello"
    assert await test_vm.get_state() is InstanceState.RUNNING
