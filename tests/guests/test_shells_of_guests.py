"""What commands leave behind in the shells of real guests: busybox in micro and alpine, bash in debian."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import pytest
from debian_guest import needs_debian
from shell_state import DIFFERENT, KEPT, LEFT_BEHIND, Kept

from pytest_propolis import TestVm, VmFactory
from pytest_propolis.settings import ChannelKind

TIMEOUT_S: Final = 60.0

SHELLS_OF_GUESTS: Final = [
    pytest.param("micro", "busybox", id="micro"),
    pytest.param("alpine", "busybox", id="alpine"),
    pytest.param("debian", "bash", id="debian", marks=needs_debian),
]


async def shown_by_the_last(vm: TestVm, commands: tuple[str, ...]) -> str:
    """What the last command shows, in a new shell in an empty directory."""
    await vm.run("exit 0", timeout_s=TIMEOUT_S)
    await vm.run("rm -rf /tmp/work; mkdir /tmp/work; cd /tmp/work", timeout_s=TIMEOUT_S)
    for command in commands:
        result = await vm.run_result(command, timeout_s=TIMEOUT_S)
    return result.text


@pytest.mark.parametrize(
    "known", [pytest.param(KEPT, id="kept", marks=pytest.mark.slow), pytest.param(DIFFERENT, id="different")]
)
@pytest.mark.parametrize(("guest", "shell"), SHELLS_OF_GUESTS)
async def test_a_guests_shell_keeps_what_the_same_shell_keeps_on_this_machine(
    vm_factory: VmFactory, guest: str, shell: str, known: dict[str, Kept]
) -> None:
    vm = await vm_factory.start(guest=guest)
    wanted = {name: kept for name, kept in known.items() if shell in kept.shells}
    shown = {name: await shown_by_the_last(vm, kept.commands) for name, kept in wanted.items()}
    assert shown == {name: kept.shows for name, kept in wanted.items()}


@pytest.mark.parametrize(("guest", "shell"), SHELLS_OF_GUESTS)
async def test_what_a_command_leaves_behind_in_a_guest_does_not_reach_results(
    vm_factory: VmFactory, guest: str, shell: str
) -> None:
    vm = await vm_factory.start(guest=guest)
    for name, left in LEFT_BEHIND.items():
        await shown_by_the_last(vm, ("kept=kept",))
        result = await vm.run_result(f"{left}\n(exit 10)", timeout_s=TIMEOUT_S)
        assert (name, result.status, result.text.replace("trapped", "").strip()) == (name, 10, "")
        for status in (1, 0):
            assert (name, (await vm.run_result(f"(exit {status})", timeout_s=TIMEOUT_S)).status) == (name, status)
            assert (name, await vm.run('echo alive "$kept"', timeout_s=TIMEOUT_S)) == (name, "alive kept")


@pytest.mark.parametrize(("guest", "shell"), SHELLS_OF_GUESTS)
async def test_redirections_of_a_guests_shell_end_with_their_command(
    vm_factory: VmFactory, guest: str, shell: str
) -> None:
    vm = await vm_factory.start(guest=guest)
    assert await vm.run("exec >/tmp/log 2>&1; echo logged; echo too >&2", timeout_s=TIMEOUT_S) == ""
    assert await vm.run("exec >&- 2>&-; echo lost; true", timeout_s=TIMEOUT_S) == ""
    assert await vm.run("exec 2>/tmp/errors; ls /no/such || true", timeout_s=TIMEOUT_S) == ""
    assert await vm.run("echo shown", timeout_s=TIMEOUT_S) == "shown"
    assert await vm.run("cat /tmp/log", timeout_s=TIMEOUT_S) == "logged\ntoo"
    assert "/no/such" in await vm.run("cat /tmp/errors", timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("channel", ["console", "port"])
@pytest.mark.parametrize(("guest", "shell"), SHELLS_OF_GUESTS)
async def test_files_go_into_a_guest_and_back_whatever_its_shell(
    vm_factory: VmFactory, tmp_path: Path, guest: str, shell: str, channel: ChannelKind
) -> None:
    vm = await vm_factory.start(guest=guest, channel=channel)
    for size in (0, 5, 40_000):
        (tmp_path / "there").write_bytes(random.Random(size).randbytes(size))
        await vm.put(tmp_path / "there", "/root/file")
        await vm.get("/root/file", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "there").read_bytes()
