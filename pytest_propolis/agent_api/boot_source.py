"""What a VM starts from: a kernel of the host's, or firmware.

`propolis-server` is given its boot ROM on its command line, not through the API; this is the engine's counterpart.
"""

from __future__ import annotations

import filecmp

import msgspec

__all__ = ["BootSource", "DirectKernel", "Firmware", "boot_difference", "loaded_kernel"]


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
    """

    uefi: bool = False
    kernel: DirectKernel | None = None


BootSource = DirectKernel | Firmware


def loaded_kernel(boot: BootSource) -> DirectKernel | None:
    """Return the kernel that a VM is given; None if firmware looks for one on a disk."""
    return boot if isinstance(boot, DirectKernel) else boot.kernel


def boot_difference(there: BootSource, here: BootSource) -> tuple[str, str, str] | None:
    """In what two servers on one host boot otherwise: its name, what it is there, what it is here.

    None when a guest would boot alike. Files that lie in different places may have the same contents.
    """
    for (what, theirs), ours in zip(_aspects(there).items(), _aspects(here).values(), strict=True):
        if theirs != ours and not (what in _FILES and _same_contents(theirs, ours)):
            return what, theirs, ours
    return None


_FILES = ("kernel", "initial RAM disk")


def _aspects(boot: BootSource) -> dict[str, str]:
    source = "a kernel of the host's"
    if isinstance(boot, Firmware):
        source = "UEFI" if boot.uefi else "the BIOS"
    kernel = loaded_kernel(boot)
    return {
        "boot source": source,
        "kernel": kernel.kernel if kernel else "none",
        "initial RAM disk": (kernel.initrd if kernel else None) or "none",
        "kernel's parameters": repr(kernel.command_line) if kernel else "none",
    }


def _same_contents(one: str, other: str) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False
