"""What a failed test's report shows of its VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from ..propolis_api.client import Endpoint
    from ..vm.test_vm import TestVm

__all__ = ["VMS", "add_sections"]

VMS: Final[pytest.StashKey[list[TestVm]]] = pytest.StashKey()
"""Where a test's item keeps the VMs that were made for it."""


STATE_TIMEOUT_S: Final = 1.0


def add_sections(item: pytest.Item, report: pytest.TestReport) -> None:
    """Add a section for each VM of a failed test."""
    if report.failed:
        for vm in item.stash.get(VMS, []):
            report.sections.append((f"propolis VM {vm.name!r}", "\n".join(describe(vm))))


def describe(vm: TestVm) -> list[str]:
    """A VM in lines: state, make, disks, console, log."""
    board = vm.spec.board
    disks = ", ".join(key for key, component in vm.spec.components.items() if hasattr(component.component, "pci_path"))
    tail = vm.console_tail()
    return [
        f"state:   {vm.final_state or _state_now(vm.endpoint)}",
        f"boot:    {vm.boot_kind}: {vm.phases}",
        f"spec:    {vm.guest.name}, {board.cpus} CPUs, {board.memory_mb} MiB, disks: {disks or 'none'}",
        f"console: the last {len(tail)} lines" if tail else "console: nothing was shown",
        *(f"    | {line}" for line in tail),
        f"log:     {vm.log_path}" + (f" (incomplete: {vm.log_failure})" if vm.log_failure else ""),
    ]


def _state_now(endpoint: Endpoint) -> str:
    """Ask the server, without an event loop: a report is made between two runs of the test's own."""
    import httpx

    transport = httpx.HTTPTransport(uds=str(endpoint.uds) if endpoint.uds else None, verify=False, trust_env=False)
    try:
        with httpx.Client(transport=transport, timeout=STATE_TIMEOUT_S) as http:
            answer = http.get(f"{endpoint.base_url}/instance")
            return str(answer.json()["instance"]["state"]) if answer.is_success else "not created"
    except httpx.TransportError as error:
        return f"unknown ({error})"
