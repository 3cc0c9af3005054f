"""Boot sources of a VM: a kernel on the host, or firmware.

`propolis-server` is given its boot ROM on its command line, not through the API; this is the engine's counterpart.
"""

from __future__ import annotations

import filecmp
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["BootSource", "DirectKernel", "Firmware", "boot_contents", "boot_difference", "loaded_kernel"]


class DirectKernel(msgspec.Struct, frozen=True, kw_only=True, tag="kernel", forbid_unknown_fields=True):
    """A Linux kernel that QEMU loads itself.

    :param kernel: path of the kernel image on the host.
    :param initrd: path of the initial RAM disk, if one is needed.
    :param command_line: the kernel's parameters.
    """

    kernel: str
    initrd: str | None = None
    command_line: str = ""


class Firmware(msgspec.Struct, frozen=True, kw_only=True, tag="firmware", forbid_unknown_fields=True):
    """Firmware that looks for a boot device itself: the server's BIOS, or its UEFI.

    :param uefi: UEFI, with variables of the VM's own.
    :param kernel: what UEFI starts instead of a boot device: a kernel with an EFI stub.
    :param boot_rom: path of a UEFI image on the host to use instead of the server's.
    """

    uefi: bool = False
    kernel: DirectKernel | None = None
    boot_rom: str | None = None


BootSource = DirectKernel | Firmware


def loaded_kernel(boot: BootSource) -> DirectKernel | None:
    """Return the kernel that a VM is given; None if firmware looks for one on a disk."""
    return boot if isinstance(boot, DirectKernel) else boot.kernel


def boot_difference(source: BootSource, target: BootSource, *, contents: bool = True) -> tuple[str, str, str] | None:
    """Return the first difference between what two servers boot, as (name, at the source, at the target).

    None if a guest would boot alike. Files that lie in different places may have the same contents.

    :param contents: compare the files, for servers on one host; else `boot_contents` tells whether they are the same.
    """
    for (name, at_source), at_target in zip(_aspects(source).items(), _aspects(target).values(), strict=True):
        if at_source == at_target:
            continue
        is_file = name in _FILES and _NONE not in (at_source, at_target)
        if not is_file or (contents and not _same_contents(at_source, at_target)):
            return name, at_source, at_target
    return None


def boot_contents(boot: BootSource) -> dict[str, str]:
    """Return hashes of the files that a VM boots from, by what they are.

    It blocks while files are read for the first time.

    :raises OSError: when one cannot be read.
    """
    aspects = _aspects(boot)
    return {what: _digest_of(Path(aspects[what])) for what in _FILES if aspects[what] != _NONE}


_FILES: Final = ("boot ROM", "kernel", "initial RAM disk")
_NONE: Final = "none"


def _aspects(boot: BootSource) -> dict[str, str]:
    source = "a kernel of the host's"
    if isinstance(boot, Firmware):
        source = "UEFI" if boot.uefi else "the BIOS"
    kernel = loaded_kernel(boot)
    return {
        "boot source": source,
        "boot ROM": (boot.boot_rom if isinstance(boot, Firmware) else None) or _NONE,
        "kernel": kernel.kernel if kernel else _NONE,
        "initial RAM disk": (kernel.initrd if kernel else None) or _NONE,
        "kernel's parameters": repr(kernel.command_line) if kernel else _NONE,
    }


def _same_contents(one: str, other: str) -> bool:

    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _digest_of(path: Path) -> str:
    status = path.stat()
    return _digest(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, _inode: int, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
