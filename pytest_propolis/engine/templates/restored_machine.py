"""A fork: a separate machine that resumes where a template stopped."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Final
from uuid import uuid4

import msgspec

from ...agent_api.guest_ports import SHELL_PORT
from ...agent_api.templates import BOUNDARY, STATE_FILE, blank_file, disk_file
from ...operating_system.child import Journal
from ...propolis_api import InstanceSpec
from ..qemu.accelerator.probe import AcceleratorName
from ..qemu.binary import Qemu
from ..qemu.guest_events import GuestEvent
from ..qemu.guest_ports import GuestPort
from ..qemu.machine import Machine
from ..qemu.monitor import MachineError
from .state_stream import load_state
from .template import Template, with_disks_in

__all__ = ["RestoredMachine"]

RESTORE_TIMEOUT_S: Final = 60.0


class RestoredMachine:
    """One QEMU with a template's memory, mapped privately, and overlays of its own on the template's disks.

    :param template_directory: where the template is stored. It may be removed once the fork has started.
    :param directory: receives the overlays.
    """

    def __init__(
        self,
        template: Template,
        *,
        template_directory: Path,
        directory: Path,
        qemu: Qemu,
        accelerator: AcceleratorName,
        tag: str,
        log_path: Path,
        journal: Journal,
    ) -> None:
        self.template = template
        self.took_s: dict[str, float] = {}
        """How long the steps of `start` took, in seconds."""
        self._template_directory = template_directory
        self._directory = directory
        self._accelerator: AcceleratorName = accelerator
        self._tag = tag
        self._generation = uuid4()
        self.spec = with_disks_in(template.spec, directory)
        self._arguments = self._arguments_for(self.spec)
        self._on_event: Callable[[GuestEvent], None] | None = None
        self._missed: list[GuestEvent] = []
        self.machine = Machine(
            program=qemu.system,
            arguments=[*qemu.arguments, *self._arguments],
            log_path=log_path,
            journal=journal,
            on_event=self._take_event,
            incoming=True,
            guest_ports=template.guest_ports,
        )

    @property
    def disks(self) -> tuple[Path, ...]:
        """Its disks, in the order of the template's."""
        return tuple(self._directory / disk_file(index) for index in range(self.template.disks))

    def missing_components(self, spec: InstanceSpec) -> tuple[str, ...] | None:
        """The components that a spec has beyond this machine's own, which come first; None if it is another machine.

        :raises InvalidSpec: when the spec contradicts itself.
        :raises SpecUnsupported: when it has what this engine does not support.
        """
        keys, own = tuple(spec.components), tuple(self.spec.components)
        if keys[: len(own)] != own:
            return None
        base = msgspec.structs.replace(spec, components={key: spec.components[key] for key in own})
        return keys[len(own) :] if self._arguments_for(base) == self._arguments else None

    @property
    def stood_by(self) -> bool:
        """Whether it was warmed up ahead of time."""
        return "warm-up" in self.took_s

    @property
    def has_ended(self) -> bool:
        """Whether QEMU ended by itself, or was killed, before it was used."""
        return GuestEvent.EXITED in self._missed or GuestEvent.DISK_FAILED in self._missed

    async def start(self) -> None:
        """Start QEMU and load the template's state; the guest does not run yet.

        :raises MachineError: when QEMU refuses the state, or ends.
        :raises OSError: when a file of the template is not there.
        """
        began = perf_counter()
        for index, overlay in enumerate(self.disks):
            shutil.copyfile(self._template_directory / blank_file(index), overlay)
        self._begin_console()
        try:
            await self.machine.start()
            started = perf_counter()
            async with asyncio.timeout(RESTORE_TIMEOUT_S):
                with (self._template_directory / STATE_FILE).open("rb") as state:
                    await load_state(self.machine, state.fileno(), memory_in_file=True)
        except BaseException:
            await self.close()
            raise
        self.took_s = {"exec": started - began, "restore": perf_counter() - started}

    async def warm_up(self) -> None:
        """Run a command in the guest, and stop it again: the first one is slow. It leaves no trace on the console.

        QEMU is suspended then, until the machine is used.

        :raises MachineError: when QEMU ends.
        :raises TimeoutError: when the guest does not answer.
        """
        began = perf_counter()
        await self.machine.resume()
        async with asyncio.timeout(RESTORE_TIMEOUT_S):
            port = self.machine.ports.get(SHELL_PORT)
            await (self._warm_up_over_console() if port is None else self._warm_up_over(port))
        await self.machine.pause()
        self._begin_console()
        self.machine.suspend()
        self.took_s["warm-up"] = perf_counter() - began

    async def _warm_up_over_console(self) -> None:
        serial = self.machine.serial
        start, seen = serial.history.end, b""
        await serial.write(self.template.warmup_input.encode())
        while self.template.warmup_marker.encode() not in seen:
            if not await serial.history.wait_beyond(start + len(seen)):
                raise MachineError("QEMU ended")
            seen += serial.history.read(start + len(seen), 1 << 16)

    async def _warm_up_over(self, port: GuestPort) -> None:
        seen = b""
        await port.write(self.template.warmup_input.encode())
        while self.template.warmup_marker.encode() not in seen:
            data = await port.read()
            if not data:
                raise MachineError("QEMU ended")
            seen += data

    def attach(self, on_event: Callable[[GuestEvent], None]) -> Machine:
        """Transfer the machine to its driver, with the guest's events so far."""
        self._on_event = on_event
        for event in self._missed:
            on_event(event)
        self._missed.clear()
        self.machine.unsuspend()
        return self.machine

    def log_to(self, path: Path) -> None:
        """Append QEMU's output to another log when QEMU has ended."""
        self.machine.log_to(path)

    async def close(self) -> None:
        """End QEMU at once. Idempotent."""
        await self.machine.close()

    def _begin_console(self) -> None:
        shown = f"{self.template.console}\n{BOUNDARY}\n"
        self.machine.serial.begin_anew(shown.replace("\n", "\r\n").encode())
        self.machine.serial.hold()

    def _arguments_for(self, spec: InstanceSpec) -> list[str]:
        return self.template.arguments(
            spec=spec,
            template_directory=self._template_directory,
            accelerator=self._accelerator,
            tag=self._tag,
            generation=self._generation,
        )

    def _take_event(self, event: GuestEvent) -> None:
        if self._on_event is None:
            self._missed.append(event)
        else:
            self._on_event(event)
