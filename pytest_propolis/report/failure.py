"""What a failed test shows of its VMs and disks: sections of its report, and a message before a debugger's prompt."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest

from ..errors import PropolisError
from ..session.guard import guarded
from ..session.internals import add_section_to_failure
from ..session.progress import progress_printer
from ..session.stash import CRUCIBLE_DISKS, KERNEL_FAILURES, RETENTION_POLICY, VMS
from ..terminal_text import printable

if TYPE_CHECKING:
    from ..propolis_api.client import Endpoint
    from ..vm.disks.crucible_disk import CrucibleDisk
    from ..vm.vm import TestVm

__all__ = ["add_sections", "print_vms_for_debugger"]


TITLES: Final = {
    "oops": "propolis kernel oops in VM {!r}",
    "panic": "propolis kernel panic in VM {!r}",
    "reset": "propolis unexpected reset of VM {!r}",
    "exit": "propolis unexpected end of VM {!r}",
}
NOT_CREATED: Final = "not created"
QEMU_LINES: Final = 10
STATE_TIMEOUT_S: Final = 1.0


def add_sections(
    item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException] | None, report: pytest.TestReport
) -> None:
    """Add a section for each VM of a failed test. Forget the VMs after the test's teardown."""
    policy = item.config.stash.get(RETENTION_POLICY, None)
    stays = policy is not None and policy.settings.keep != "never"
    shown = dict(_tails(excinfo.value)) if excinfo else {}
    for vm in item.stash.get(VMS, []) if report.failed else ():
        with guarded(item.config, f"describing VM {vm.name!r} of {item.nodeid}"):
            lines = describe(vm, shown=shown.get(vm.name, ()), stays=stays)
            _add_section(report, f"propolis VM {vm.name!r}", "\n".join(lines))
    for disk in item.stash.get(CRUCIBLE_DISKS, []) if report.failed else ():
        with guarded(item.config, f"describing crucible disk {disk.name!r} of {item.nodeid}"):
            _add_section(report, f"propolis crucible disk {disk.name!r}", "\n".join(_describe_volume(disk)))
    for vm_name, failure in item.stash.get(KERNEL_FAILURES, []) if report.failed else ():
        _add_section(report, TITLES[failure.kind].format(vm_name), "\n".join(map(printable, failure.lines())))
    if report.failed or report.when != "setup":  # output of a setup that passed belongs to the call
        item.stash[KERNEL_FAILURES] = []
    if report.when == "teardown":
        item.stash[VMS] = []
        item.stash[CRUCIBLE_DISKS] = []


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


def _add_section(report: pytest.TestReport, title: str, content: str) -> None:
    """Add a section where every consumer of the report finds it.

    Only terminals show `report.sections`; IDEs, JUnit files and Allure take the text of the failure itself.
    """
    if add_section_to_failure(report.longrepr, title, content):
        return
    if isinstance(report.longrepr, str):
        report.longrepr = f"{report.longrepr}\n{f' {title} '.center(80, '-')}\n{content}"
    else:
        report.sections.append((title, content))


def describe(vm: TestVm, *, shown: tuple[str, ...] = (), stays: bool = False) -> list[str]:
    """Return lines that describe a VM: state, hardware, disks, console, log.

    :param shown: the lines of its console that the error shows already.
    :param stays: whether it is kept after the test.
    """
    # Heavy, and there are no failures in most runs.
    from ..propolis_api import InstanceState, NvmeDiskComponent, VirtioDiskComponent

    board = vm.spec.board
    components = vm.spec.components.items()
    disks = ", ".join(key for key, part in components if isinstance(part, VirtioDiskComponent | NvmeDiskComponent))
    state = vm.final_state or _state_now(vm.endpoint)
    return [
        f"state:   {state}",
        *([f"host:    {vm.host.name} ({vm.host.address})"] if vm.host.address != "localhost" else []),
        f"boot:    {vm.boot_kind}: {vm.phases}",
        f"spec:    {vm.guest.name}, {board.cpus} CPUs, {board.memory_mb} MiB, disks: {disks or 'none'}",
        *_migration(vm),
        *_networks(vm),
        *_console(vm.console_tail(), shown),
        *(_qemu(vm.endpoint) if state == InstanceState.FAILED else []),
        f"log:     {vm.log_path}" + (f" (incomplete: {vm.log_failure})" if vm.log_failure else ""),
        *([f"stays:   propolis console {vm.id}{vm.host.command_options}"] if stays and state != NOT_CREATED else []),
    ]


def _migration(vm: TestVm) -> Iterator[str]:
    """Return how the guest migrated to the VM, if it did."""
    if vm.migrated_from is None:
        return
    import msgspec  # most runs have no failures, and most failures no migrations

    from ..agent_api.migration_report import MigrationReport
    from ..propolis_api.connection.http import request

    with contextlib.suppress(Exception):  # as for the state
        answer = request(vm.endpoint, "GET", "/migrations", timeout_s=STATE_TIMEOUT_S)
        came = msgspec.json.decode(answer.content, type=MigrationReport).migration_in
        if came is not None:
            phases = ", ".join(f"{phase} {after_s:.2f}" for phase, after_s in came.phases_s.items())
            pause = f"stood still for {came.pause_s:.3f} s" if came.pause_s else "has not run since"
            yield (
                f"moved:   from {vm.migrated_from.name}, {came.memory_transfer}, {pause}, "
                f"{came.carried_bytes >> 20} MiB carried; phases at {phases} s"
            )


def _networks(vm: TestVm) -> Iterator[str]:
    for nic in vm.nics:
        assert nic.network is not None
        frames = nic.network.capture_path(vm.log_path.parent, vm.host.name)
        yield f"network: {nic.network.name}, {vm.address(nic.network)}, frames in {frames}"


def _console(tail: tuple[str, ...], shown: tuple[str, ...]) -> list[str]:
    """Return the end of the console, without the lines that the error shows already."""
    since = _lines_after(tail, shown)
    lines = [f"    | {printable(line)}" for line in since]
    if len(since) < len(tail):
        return ["console: see the error above", *(["         and since then:", *lines] if lines else [])]
    return [f"console: the last {len(tail)} lines" if tail else "console: nothing was shown", *lines]


def _qemu(endpoint: Endpoint) -> Iterator[str]:
    """Return what a QEMU has printed last."""
    from ..agent_api.agent_process import SERVER_LINE
    from ..propolis_api.connection.http import request

    with contextlib.suppress(Exception):  # as for the state
        answer = request(endpoint, "GET", "/log", timeout_s=STATE_TIMEOUT_S)
        lines = answer.content.decode(errors="replace").splitlines() if answer.is_success else []
        printed = [line for line in lines if not line.startswith(SERVER_LINE)][-QEMU_LINES:]
        if printed:
            yield f"qemu:    the last {len(printed)} lines"
            yield from (f"    | {printable(line)}" for line in printed)


def _describe_volume(disk: CrucibleDisk) -> list[str]:
    """Return lines that describe a replicated disk: size, generation, and each downstairs with its latest output."""
    try:
        facts = disk.facts_now()
    except PropolisError as error:
        return [f"unknown: {error.message}"]
    lines = [f"{facts.size_bytes >> 20} MiB, generation {disk.generation}, volume {facts.id}"]
    for downstairs in facts.downstairs:
        position = disk.targets.index(downstairs.address) if downstairs.address in disk.targets else "replaced"
        lines.append(
            f"downstairs {position}: {downstairs.address} {downstairs.state},"
            f" generation {downstairs.generation}, epoch {downstairs.epoch}, {downstairs.path}"
        )
        lines += [f"    | {line}" for line in downstairs.log]
    return lines


def _lines_after(tail: tuple[str, ...], shown: tuple[str, ...]) -> tuple[str, ...]:
    """Return the lines of a tail that follow those of an earlier one."""
    common = next((n for n in range(min(len(tail), len(shown)), 0, -1) if shown[-n:] == tail[:n]), 0)
    return tail[common:]


def _tails(error: BaseException | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return the consoles that an error's text shows, by VM: its own, and those of its causes."""
    while error is not None:
        if isinstance(error, PropolisError) and error.vm:
            yield error.vm, error.console_tail
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _tails(inner)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _state_now(endpoint: Endpoint) -> str:
    """Query the server without an event loop: a report is made between two runs of the test's own loop."""
    from ..propolis_api.connection.http import request

    try:
        answer = request(endpoint, "GET", "/instance", timeout_s=STATE_TIMEOUT_S)
        return str(json.loads(answer.content)["instance"]["state"]) if answer.is_success else NOT_CREATED
    except Exception as error:
        # A report must also describe a server that is gone, frozen, or hidden by the test's patches.
        return f"unknown ({str(error) or type(error).__name__})"
