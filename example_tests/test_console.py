"""The serial console, as a person at the terminal uses it."""

import re

import pytest

from pytest_propolis import ConsoleTimeout, VmFactory


async def test_job_control(vm_factory: VmFactory) -> None:
    """A terminal with the user's own shell: what is typed is echoed, Ctrl-Z stops a job, `fg` brings it back."""
    vm = await vm_factory.start("terminal", guest="micro")
    async with vm.interactive() as console:
        await console.send("sh -c 'echo up; exec sleep 1000'\n")
        await console.wait_for(re.compile("^up$", re.MULTILINE), timeout_s=20)  # not the echo of what was typed
        await console.send(b"\x1a")  # Ctrl-Z
        await console.wait_for("Stopped", timeout_s=20)
        await console.send("kill %1; fg\n")  # it ends as soon as it runs again
        await console.wait_for("Terminated", timeout_s=20)
        await console.send("echo status: $?\n")
        await console.wait_for("status: 143", timeout_s=20)
    assert await vm.run("echo back") == "back"


async def test_waiting_for_serial_output(vm_factory: VmFactory) -> None:
    """What the kernel or any program writes to the console can be waited for."""
    vm = await vm_factory.start("watched", guest="micro")
    await vm.run("(sleep 1; echo '<0>all 12 tests done' >/dev/kmsg) &")
    found = await vm.wait_for_serial_output(re.compile(r"all (\d+) tests done"), timeout_s=30)
    assert found.groups == ("12",)
    with pytest.raises(ConsoleTimeout, match="did not appear on the console"):
        await vm.wait_for_serial_output("something else", timeout_s=0.5)
