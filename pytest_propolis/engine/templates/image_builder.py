"""Build an image from a recipe: boot a guest from the image, type the recipe's commands, and power it off."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from ...agent_api.image_recipe import ImageRecipe
from ...errors import ArtifactError
from ...operating_system.child import Journal
from ...storage.images.overlays import create_overlay
from ..qemu.accelerator.acceleration import acceleration_arguments
from ..qemu.accelerator.probe import AcceleratorName
from ..qemu.binary import Qemu
from ..qemu.guest_events import GuestEvent
from ..qemu.machine import Machine
from ..qemu.monitor import MachineError

__all__ = ["build_image"]

OUTPUT_KEPT: Final = 4096


async def build_image(
    recipe: ImageRecipe,
    *,
    qemu: Qemu,
    accelerator: AcceleratorName,
    kernel: Path,
    initrd: Path,
    disk: Path,
    target: Path,
    timeout_s: float,
    tag: str,
    journal: Journal,
) -> None:
    """Carry a recipe out; `target` is a qcow2 overlay on `disk` with the changes.

    :raises ArtifactError: when the guest does not get to the end, with the last that it showed.
    """
    await create_overlay(qemu_img=qemu.img, backing=disk, overlay=target, backing_format="qcow2")
    ended = asyncio.Event()
    machine = Machine(
        program=qemu.system,
        arguments=[*qemu.arguments, *_arguments(recipe, accelerator, kernel, initrd, target, tag)],
        log_path=target.with_suffix(".log"),
        journal=journal,
        on_event=lambda event: ended.set() if event is GuestEvent.EXITED else None,
    )
    try:
        await machine.start()
        await machine.resume()
        async with asyncio.timeout(timeout_s):
            await _type_script(machine, recipe, ended)
        # Ends QEMU in order, so that the image is complete.
        with contextlib.suppress(MachineError):
            await machine.execute("quit")
        await ended.wait()
    except (MachineError, TimeoutError) as error:
        shown = machine.serial.history.read(max(0, machine.serial.history.end - OUTPUT_KEPT), OUTPUT_KEPT)
        raise ArtifactError(
            f"preparing {recipe.name} failed: {error or f'not done after {timeout_s:.0f} s'}",
            console_tail=tuple(shown.decode(errors="replace").splitlines()[-30:]),
            hint="see what the guest shows above; a slow machine may need --propolis-boot-timeout",
        ) from None
    finally:
        await machine.close()
        target.with_suffix(".log").unlink(missing_ok=True)


async def _type_script(machine: Machine, recipe: ImageRecipe, ended: asyncio.Event) -> None:
    offset = await _expect(machine, recipe.prompt, 0, ended)
    await machine.serial.write(recipe.script.encode())
    await _expect(machine, recipe.done, offset, ended)


async def _expect(machine: Machine, text: str, offset: int, ended: asyncio.Event) -> int:
    history, wanted, seen = machine.serial.history, text.encode(), b""
    gone = asyncio.create_task(ended.wait())
    try:
        while wanted not in seen:
            grown = asyncio.create_task(history.wait_beyond(offset + len(seen)))
            await asyncio.wait([grown, gone], return_when=asyncio.FIRST_COMPLETED)
            if not grown.done():
                grown.cancel()
                raise MachineError("QEMU ended")
            seen += history.read(offset + len(seen), 1 << 16)
    finally:
        gone.cancel()
    return offset + seen.index(wanted) + len(wanted)


def _arguments(
    recipe: ImageRecipe, accelerator: AcceleratorName, kernel: Path, initrd: Path, target: Path, tag: str
) -> list[str]:
    return [
        *("-name", f"guest={tag}", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"),
        *("-machine", "pc", *acceleration_arguments(accelerator), "-m", "512M"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", recipe.command_line),
        *("-drive", f"if=virtio,format=qcow2,cache=unsafe,file={str(target).replace(',', ',,')}"),
        *("-device", "isa-serial,index=0,chardev=com1"),
    ]
