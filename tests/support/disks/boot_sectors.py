"""Disks from which a BIOS boots a program of a few bytes."""

from __future__ import annotations

SIZE_BYTES = 1 << 20
"""A BIOS boots from no disk that has not even a cylinder."""


def boot_disk(text: str) -> bytes:
    """Return a disk whose program writes a text to COM1 and halts."""
    # mov dx, 0x3f8
    code = b"\xba\xf8\x03"
    # mov al, character; out dx, al
    code += b"".join(bytes([0xB0, character, 0xEE]) for character in text.encode())
    # hlt; jmp to the hlt
    return bootable(code + b"\xf4\xeb\xfd")


def writing_disk(size_bytes: int) -> bytes:
    """Return a disk whose program overwrites all but its first block with zeros, repeatedly, 32 KiB at a time."""
    code = b"\x31\xc0\x8e\xd8"  # xor ax, ax; mov ds, ax
    again = len(code)
    code += b"\xbe\x80\x7d\xb8\x00\x43\xcd\x13"  # mov si, packet; mov ax, 0x4300; int 0x13
    code += b"\x83\x06\x88\x7d\x40"  # add word [packet + 8], 64
    code += b"\x81\x3e\x88\x7d" + (size_bytes // 512 - 64).to_bytes(2, "little")  # cmp word [packet + 8], last
    code += bytes([0x72, (again - len(code) - 2) & 0xFF])  # jb again
    code += b"\xc7\x06\x88\x7d\x01\x00"  # mov word [packet + 8], 1
    code += bytes([0xEB, (again - len(code) - 2) & 0xFF])  # jmp again
    # 64 blocks from 2000:0000 to block 1: what the BIOS calls a disk address packet
    packet = b"\x10\x00\x40\x00\x00\x00\x00\x20" + (1).to_bytes(8, "little")
    return bootable(code.ljust(0x180, b"\0") + packet).ljust(size_bytes, b"\0")


def bootable(code: bytes) -> bytes:
    """Return a disk that runs this code, in real mode at 0x7c00."""
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
    """Return a disk whose program writes a text to COM1, echoes typed characters, and obeys them (`DEEDS`)."""
    code = b"\xba\xf8\x03" + b"".join(bytes([0xB0, character, 0xEE]) for character in text.encode())
    loop = READER
    for character, deed in DEEDS.items():
        # cmp al, character; jne over it
        loop += bytes([0x3C, ord(character), 0x75, len(deed)]) + deed
    return bootable(code + loop + bytes([0xEB, 0x100 - len(loop) - 2]))
