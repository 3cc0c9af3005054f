"""A machine's state, saved by one QEMU and loaded by others that map the same memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pytest_propolis.engine.qemu.accelerator.acceleration import acceleration_arguments
from pytest_propolis.engine.qemu.binary import find_qemu
from pytest_propolis.engine.qemu.machine import Machine
from pytest_propolis.engine.qemu.memory import MEMORY_ID, GuestMemory
from pytest_propolis.engine.qemu.monitor import MachineError
from pytest_propolis.engine.templates.state_stream import load_state, save_state
from pytest_propolis.guests.micro import Micro
from pytest_propolis.operating_system.child import NoJournal
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.storage.user_directories import default_artifact_dir

MEMORY_MIB = 256
PROMPT = b"~ # "


@contextlib.asynccontextmanager
async def machine(tmp_path: Path, memory: GuestMemory, *, incoming: bool = False) -> AsyncIterator[Machine]:
    qemu = await find_qemu(None)
    store = ArtifactStore(default_artifact_dir())
    assert Micro.image.kernel
    assert Micro.image.initrd
    kernel = await store.get(Micro.image.kernel, lambda text: None)
    initrd = await store.get(Micro.image.initrd, lambda text: None)
    made = Machine(
        program=qemu.system,
        arguments=[
            *qemu.arguments,
            *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
            *memory.arguments(size_mib=MEMORY_MIB),
            *("-machine", f"pc,memory-backend={MEMORY_ID}", "-m", f"{MEMORY_MIB}M", *acceleration_arguments("tcg")),
            *("-kernel", str(kernel), "-initrd", str(initrd), "-append", Micro.image.command_line),
            *("-device", "isa-serial,index=0,chardev=com1"),
        ],
        log_path=tmp_path / "qemu.log",
        journal=NoJournal(),
        on_event=lambda event: None,
        incoming=incoming,
    )
    try:
        await made.start()
        yield made
    finally:
        await made.close()


async def shown(machine: Machine, wanted: bytes, *, start: int = 0) -> int:
    """Wait until the guest shows something, and return the offset behind it."""
    history, seen = machine.serial.history, b""
    async with asyncio.timeout(120):
        while wanted not in seen:
            assert await history.wait_beyond(start + len(seen))
            seen += history.read(start + len(seen), 1 << 16)
    return start + seen.index(wanted) + len(wanted)


async def test_forks_go_on_where_the_state_was_saved_and_share_nothing_written(tmp_path: Path) -> None:
    ram, state = tmp_path / "ram", tmp_path / "state"
    async with machine(tmp_path, GuestMemory(path=str(ram), shared=True)) as template:
        await template.resume()
        place = await shown(template, PROMPT)
        await template.serial.write(b"word=before\n")
        await shown(template, PROMPT, start=place)
        await template.pause()
        with state.open("wb") as file:
            await save_state(template, file.fileno(), memory_in_file=True)
    for name in (b"first", b"second"):
        async with machine(tmp_path, GuestMemory(path=str(ram), shared=False), incoming=True) as fork:
            with state.open("rb") as file:
                await load_state(fork, file.fileno(), memory_in_file=True)
            await fork.resume()
            await fork.serial.write(b"echo $word:; word=" + name + b"\n")
            await shown(fork, b"\r\nbefore:")
            await fork.serial.write(b"echo $word:\n")
            await shown(fork, b"\r\n" + name + b":")


async def test_a_state_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    ram, state = tmp_path / "ram", tmp_path / "state"
    async with machine(tmp_path, GuestMemory(path=str(ram), shared=True)) as template:
        with state.open("wb") as file:
            await save_state(template, file.fileno(), memory_in_file=True)
    os.truncate(state, state.stat().st_size // 2)
    async with machine(tmp_path, GuestMemory(path=str(ram), shared=False), incoming=True) as fork:
        with state.open("rb") as file, pytest.raises(MachineError):
            await load_state(fork, file.fileno(), memory_in_file=True)


async def test_a_killed_qemu_ends_the_saving(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    async with machine(tmp_path, GuestMemory(path=str(tmp_path / "ram"), shared=False)) as doomed:
        saving = asyncio.create_task(save_state(doomed, writer, memory_in_file=False))
        await asyncio.to_thread(os.read, reader, 1)  # it writes; the pipe is full soon, and nobody reads on
        assert doomed.pid
        os.kill(doomed.pid, signal.SIGKILL)
        with pytest.raises(MachineError):
            await saving
    os.close(reader)
    os.close(writer)
