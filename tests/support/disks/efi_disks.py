"""Disks from which UEFI boots a program of a few bytes, made with mtools."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["HAS_MTOOLS", "efi_disk", "fat_disk"]

HAS_MTOOLS: Final = all(shutil.which(program) for program in ("mformat", "mmd", "mcopy"))

HEADERS_BYTES: Final = 0x200
SECTION_RVA: Final = 0x1000
X86_64, EFI_APPLICATION = 0x8664, 10


def fat_disk(image: Path) -> Path:
    """Make an empty file system, with nothing to boot."""
    _mtools("mformat", "-C", "-i", image, "-f", "1440", "::")
    return image


def efi_disk(image: Path, text: str) -> Path:
    """Make a disk whose program writes a text to the console and halts."""
    fat_disk(image)
    program = image.with_suffix(".efi")
    program.write_bytes(_application(text))
    _mtools("mmd", "-i", image, "::/EFI", "::/EFI/BOOT")
    _mtools("mcopy", "-i", image, program, "::/EFI/BOOT/BOOTX64.EFI")
    return image


def _mtools(*words: str | Path) -> None:
    subprocess.run(words, check=True, timeout=30)


def _application(text: str) -> bytes:
    """Return a PE32+ image with one section."""
    section = _code(text)
    file_header = struct.pack("<HHIIIHH", X86_64, 1, 0, 0, 0, 240, 0x0206)
    optional_header = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII128x",
        *(0x20B, 0, 0, len(section), 0, 0, SECTION_RVA, SECTION_RVA),
        *(0x400000, 0x1000, 0x200, 0, 0, 0, 0, 0, 0, 0),
        *(SECTION_RVA + 0x1000, HEADERS_BYTES, 0, EFI_APPLICATION, 0),
        *(1 << 20, 1 << 12, 1 << 20, 1 << 12, 0, 16),
    )
    section_header = struct.pack(
        "<8sIIII12xI", b".text", len(section), SECTION_RVA, len(section), HEADERS_BYTES, 0xE0000020
    )
    dos_header = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    headers = dos_header + b"PE\0\0" + file_header + optional_header + section_header
    return headers.ljust(HEADERS_BYTES, b"\0") + section


def _code(text: str) -> bytes:
    # sub rsp, 40; mov rcx, [rdx + 64] (the system table's console)
    code = b"\x48\x83\xec\x28" + b"\x48\x8b\x4a\x40"
    # lea rdx, [rip + 6] (the text); call [rcx + 8] (OutputString)
    code += b"\x48\x8d\x15\x06\0\0\0" + b"\xff\x51\x08"
    # hlt; jmp to the hlt
    code += b"\xf4\xeb\xfd" + f"{text}\0".encode("utf-16-le")
    return code.ljust(-(-len(code) // 0x200) * 0x200, b"\0")
