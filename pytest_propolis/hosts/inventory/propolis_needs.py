"""The requirements of `propolis-server` on illumos: bhyve's devices, privileges, and a pool for disks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .capability import Capability, try_program

__all__ = ["probe_propolis_needs"]

_ROOT: Final = Path("/")


async def probe_propolis_needs(root: Path = _ROOT) -> tuple[Capability, ...]:
    """Look for what VMs at a `propolis-server` need.

    :param root: where devices are looked for; ``/`` except in tests.
    """
    return _vmm(root), await _pfexec(), _viona(root), await _pool()


def _vmm(root: Path) -> Capability:
    control, machines = root / "dev/vmmctl", root / "dev/vmm"
    if not control.exists():
        remedy = (
            "install bhyve (OmniOS: pkg install system/bhyve), on a processor with VT-x or AMD-V; a zone needs devices"
        )
        return Capability("/dev/vmm", ok=False, detail="there is no /dev/vmmctl", remedy=remedy)
    names = sorted(path.name for path in machines.iterdir()) if machines.is_dir() else []
    return Capability("/dev/vmm", ok=True, detail=f"VMs: {', '.join(names) or 'none'}")


def _viona(root: Path) -> Capability:
    if (root / "dev/viona").exists():
        return Capability("viona", ok=True, detail="/dev/viona")
    remedy = "it comes with bhyve; VMs without network cards do without it"
    return Capability("viona", ok=False, detail="there is no /dev/viona", remedy=remedy)


async def _pfexec() -> Capability:
    return await try_program(
        "pfexec",
        ["pfexec", "true"],
        found=lambda _: "programs get the privileges of the user's rights profile",
        remedy="give the user a rights profile that may use /dev/vmmctl: usermod -P 'Primary Administrator' USER",
    )


async def _pool() -> Capability:
    remedy = "make one: zpool create NAME DISK; put --propolis-artifact-dir and --propolis-disk-dir on it"
    listed = await try_program(
        "ZFS pool",
        ["zpool", "list", "-H", "-o", "name"],
        found=lambda finished: ", ".join(finished.output.split()),
        remedy=remedy,
    )
    return listed if listed.detail else Capability("ZFS pool", ok=False, detail="there is none", remedy=remedy)
