"""A test that fails, on purpose. With ``--runxfail`` it is reported like any other failure."""

import pytest

from pytest_propolis import CommandFailed, VmFactory


@pytest.mark.xfail(strict=True, raises=CommandFailed, reason="shows what the report of a failing test looks like")
async def test_a_command_fails(vm_factory: VmFactory) -> None:
    """The report has the command, its status and its output; then the VM with state, spec, console and log."""
    vm = await vm_factory.start("example", guest="micro")
    await vm.run("mount /dev/vdz /mnt")
