"""Disks from which a BIOS boots a program of a few bytes."""

from __future__ import annotations

SIZE_BYTES = 1 << 20
"""A BIOS boots from no disk that has not even a cylinder."""


def boot_disk(text: str) -> bytes:
    """One that writes a text to COM1, and halts."""
    # mov dx, 0x3f8
    code = b"\xba\xf8\x03"
    # mov al, character; out dx, al
    code += b"".join(bytes([0xB0, character, 0xEE]) for character in text.encode())
    # hlt; jmp to the hlt
    return bootable(code + b"\xf4\xeb\xfd")


def bootable(code: bytes) -> bytes:
    """One that runs this code, in real mode at 0x7c00."""
    return (code.ljust(510, b"\0") + b"\x55\xaa").ljust(SIZE_BYTES, b"\0")
