"""The message about a failed test's VMs before a debugger's prompt."""

from __future__ import annotations

import pytest

from ..session.progress import progress_printer
from ..session.stash import VMS

__all__ = ["print_vms_for_debugger"]


def print_vms_for_debugger(node: pytest.Item | pytest.Collector) -> None:
    """Print how to reach the VMs of a failed test before a debugger starts for it."""
    if node.config.getoption("usepdb", False):
        show = progress_printer(node.config)
        for vm in node.stash.get(VMS, []):
            show(
                f"VM {vm.name!r} is up until you leave the debugger: its method `debug` runs a command "
                f"(print(vm.debug('dmesg'))); propolis console {vm.id}{vm.host.command_options} shows its console in "
                "another terminal"
            )
