"""The life cycle of a server: creation, failed creation, end by the guest, close, second creation."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio
from engine_rig import DEADLINE_S, FAKE_QEMU, EngineRig, engine_rig, ensure_request
from full_journal import FullJournal
from msgspec.structs import replace

from pytest_propolis.agent_api.boot_source import DirectKernel, Firmware
from pytest_propolis.engine.qemu import monitor
from pytest_propolis.engine.qemu.binary import Qemu, find_firmware
from pytest_propolis.engine.server.dropshot_errors import HttpError
from pytest_propolis.engine.server.server import VmServer
from pytest_propolis.propolis_api import InstanceState

CREATING, FAILED, DESTROYED = InstanceState.CREATING, InstanceState.FAILED, InstanceState.DESTROYED


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[EngineRig]:
    async with engine_rig(tmp_path) as rig:
        yield rig


@pytest_asyncio.fixture
async def running(rig: EngineRig) -> EngineRig:
    await rig.ensure()
    await rig.put("Run")
    await rig.wait_for(InstanceState.RUNNING)
    return rig


class HeldQemu:
    """A QEMU that does not come up before it is let go."""

    def __init__(self, directory: Path, program: str) -> None:
        self._gate = directory / "gate"
        os.mkfifo(self._gate)
        script = directory / "held-qemu"
        script.write_text(f'#!/bin/sh\nread -r _ < "{self._gate}"\nexec {shlex.quote(program)} "$@"\n')
        script.chmod(0o700)
        self.qemu: Qemu = replace(FAKE_QEMU, system=script)

    async def let_go(self) -> None:
        await asyncio.to_thread(self._gate.write_text, "go\n")


async def until_qemu_runs(rig: EngineRig) -> int:
    async with asyncio.timeout(DEADLINE_S):
        while (pid := rig.server.pid) is None:
            await asyncio.sleep(0)
    return pid


# Making


@pytest.mark.parametrize(("program", "state"), [(str(FAKE_QEMU.system), CREATING), ("false", FAILED)])
async def test_a_caller_who_leaves_does_not_undo_what_was_asked_for(
    tmp_path: Path, program: str, state: InstanceState
) -> None:
    held = HeldQemu(tmp_path, program)
    async with engine_rig(tmp_path, qemu=held.qemu) as rig:
        ensuring = asyncio.create_task(rig.ensure())
        await until_qemu_runs(rig)
        ensuring.cancel()
        assert list(await asyncio.gather(ensuring, return_exceptions=True)) != [None]
        assert (await rig.ensure()).status_code == 409
        # It is being made, so that nothing can be asked of it yet.
        assert (await rig.put("Run")).status_code == 424
        assert (await rig.client.get("/instance/spec")).status_code == 200
        await held.let_go()
        await rig.wait_for(state)
        if state is CREATING:
            async with asyncio.timeout(DEADLINE_S):
                while (await rig.put("Run")).status_code != 204:
                    await asyncio.sleep(0)
            await rig.wait_for(InstanceState.RUNNING)


async def test_who_waits_for_a_vm_of_a_server_that_is_closed_is_told(tmp_path: Path) -> None:
    held = HeldQemu(tmp_path, "false")
    async with engine_rig(tmp_path, qemu=held.qemu) as rig:
        ensuring = asyncio.create_task(rig.server.ensure(ensure_request()))
        pid = await until_qemu_runs(rig)
        await asyncio.gather(rig.server.close(), rig.server.close())
        with pytest.raises(HttpError, match="VM initialization failed: the server was closed"):
            await ensuring
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_log_that_cannot_be_opened_is_named_with_the_remedy(tmp_path: Path) -> None:
    log = tmp_path / "no such directory" / "qemu.log"
    async with engine_rig(tmp_path, log_path=log) as rig:
        answer = await rig.ensure()
        assert answer.status_code == 500
        assert answer.json()["message"] == (
            f"VM initialization failed: the log {log} cannot be opened: No such file or directory;"
            " make room there, or choose another directory with --propolis-log-dir"
        )
        assert await rig.wait_for(FAILED) == 2
        log.parent.mkdir()
        assert (await rig.ensure()).status_code == 201
        assert await rig.wait_for(CREATING) == 1


@pytest.mark.parametrize("step", ["intend", "live"])
async def test_a_ledger_that_is_full_is_named(tmp_path: Path, step: Literal["intend", "live"]) -> None:
    journal = FullJournal(fails=step)
    async with engine_rig(tmp_path / "vm", journal=journal, log_path=tmp_path / "qemu.log") as rig:
        answer = await rig.ensure()
        assert answer.status_code == 500
        assert answer.json()["message"] == "VM initialization failed: the ledger is full"
        assert await rig.wait_for(FAILED) == 2
    assert journal.process is None or not journal.process.is_alive()


@pytest.mark.parametrize("program", ["/nonexistent/qemu", "/bin/false"])
async def test_a_qemu_that_does_not_run_is_an_initialization_that_failed(tmp_path: Path, program: str) -> None:
    async with engine_rig(tmp_path, qemu=replace(FAKE_QEMU, system=Path(program))) as rig:
        answer = await rig.ensure()
        assert answer.status_code == 500
        assert answer.json()["message"].startswith("VM initialization failed: ")
        assert await rig.wait_for(FAILED) == 2
        assert (await rig.put("Run")).status_code == 424
        assert (await rig.ensure()).json()["message"] == answer.json()["message"]


async def test_the_log_of_a_vm_has_the_cause_of_a_request_that_failed_unexpectedly(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nmi(_server: VmServer) -> None:
        raise KeyError("com3")

    monkeypatch.setattr(VmServer, "nmi", nmi)
    answer = await rig.client.post("/instance/nmi")
    assert answer.status_code == 500
    first, *_, last = rig.server.log_path.read_text().splitlines()
    assert first == f"[propolis] request {answer.json()['request_id']}: Traceback (most recent call last):"
    assert last == "[propolis] KeyError: 'com3'"


# The guest's own doing


@pytest.mark.parametrize("end", ["Stop", "close"])
@pytest.mark.parametrize("asked", ["Run", "Reboot"])
async def test_a_frozen_qemu_holds_up_no_end(rig: EngineRig, asked: str, end: str) -> None:
    await rig.ensure()
    if asked == "Reboot":
        await rig.put("Run")
        await rig.wait_for(InstanceState.RUNNING)
    pid = rig.server.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    await rig.put(asked)
    await rig.wait_for(InstanceState.STARTING if asked == "Run" else InstanceState.REBOOTING)
    if end == "Stop":
        assert (await rig.put("Stop")).status_code == 204
    else:
        async with asyncio.timeout(DEADLINE_S):
            await rig.server.close()
    # A VM that has not started is Stopped at once.
    states = {"Run": 2, "Reboot": 4}[asked] + {"Run": 1, "Reboot": 2}[asked] * (end == "Stop") + 1
    assert await rig.wait_for(DESTROYED) == states
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_qemu_that_answers_no_more_is_a_failed_vm_after_the_deadline(
    running: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(running.pid, signal.SIGSTOP)
    monkeypatch.setattr(monitor, "COMMAND_TIMEOUT_S", 0.1)
    await running.put("Reboot")
    # Creating, Starting, Running, Rebooting, Failed.
    assert await running.wait_for(FAILED) == 5


# Making again


@pytest.mark.skipif(find_firmware() is None, reason="there is no UEFI firmware (package ovmf)")
async def test_a_kernel_without_an_efi_stub_is_refused_before_uefi_starts(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"no EFI program")
    boot = Firmware(uefi=True, kernel=DirectKernel(kernel=str(kernel)))
    async with engine_rig(tmp_path / "vm", boot=boot, log_path=tmp_path / "log") as rig:
        answer = await rig.ensure()
        assert answer.status_code == 500
        assert "UEFI cannot start the kernel vmlinuz" in answer.text
        assert rig.server.pid is None


async def test_a_close_before_a_vm_has_begun_ends_its_ensure(rig: EngineRig) -> None:
    ensuring = asyncio.create_task(rig.server.ensure(ensure_request()))
    while rig.server.state_name is None:  # its life is a task that has not had its turn
        await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        await rig.server.close()
        with pytest.raises(HttpError):
            await ensuring
    assert rig.server.state_name == DESTROYED
