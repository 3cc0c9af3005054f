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


READER = b"\xba\xfd\x03\xec\xa8\x01\x74\xf8" + b"\xba\xf8\x03\xec\xee"
"""Wait for a character from COM1, and echo it: mov dx, 0x3fd; in al, dx; test al, 1; jz back; mov dx, 0x3f8; in al, dx;
out dx, al."""

DEEDS = {
    "r": b"\xba\xf9\x0c\xb0\x06\xee",  # mov dx, 0xcf9; mov al, 6; out dx, al: reset
    "s": b"\xba\x04\x06\xb8\x00\x20\xef",  # mov dx, 0x604; mov ax, 0x2000; out dx, ax: off, by ACPI
    "p": b"\xba\x05\x05\xb0\x01\xee",  # mov dx, 0x505; mov al, 1; out dx, al: pvpanic
}


def obedient_disk(text: str) -> bytes:
    """One that writes a text to COM1, echoes what is typed there, and does what it means (`DEEDS`)."""
    code = b"\xba\xf8\x03" + b"".join(bytes([0xB0, character, 0xEE]) for character in text.encode())
    loop = READER
    for character, deed in DEEDS.items():
        # cmp al, character; jne over it
        loop += bytes([0x3C, ord(character), 0x75, len(deed)]) + deed
    return bootable(code + loop + bytes([0xEB, 0x100 - len(loop) - 2]))
