"""The picture that a machine's display shows."""

from __future__ import annotations

import secrets
from pathlib import Path

from ..machine import Machine

__all__ = ["screenshot"]


async def screenshot(machine: Machine, *, directory: Path) -> bytes:
    """A PNG image of the display of a machine that has one.

    :param directory: a private directory, which QEMU writes a file into for a moment.
    :raises MachineError: when QEMU cannot.
    :raises OSError: when there is no space for the file.
    """
    picture = directory / f"screen-{secrets.token_hex(4)}.png"
    try:
        await machine.execute("screendump", filename=str(picture), format="png")
        return picture.read_bytes()
    finally:
        picture.unlink(missing_ok=True)
