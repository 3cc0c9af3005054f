"""Capabilities of this machine that tests require: probed once per process, never assumed."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from functools import cache

from ...engine.qemu.accelerator.probe import probe_accelerator
from ...engine.qemu.binary import find_qemu
from ...errors import PropolisError
from ...settings import Settings
from ...storage.user_directories import cache_directory, default_artifact_dir

__all__ = ["has_kvm", "zfs_obstacle"]

ZFS_TIMEOUT_S = 10.0


@cache
def has_kvm(settings: Settings) -> bool:
    """Return whether a guest actually runs under KVM here."""

    async def probe() -> bool:
        choice = await probe_accelerator(await find_qemu(settings.qemu), wanted="auto", cache_dir=cache_directory())
        return choice.name == "kvm"

    try:
        return asyncio.run(probe())
    except PropolisError:
        return False


@cache
def zfs_obstacle(settings: Settings) -> str | None:
    """Return why disks cannot be forked with ZFS here, and the remedy; None if they can."""
    if shutil.which("zfs") is None:
        return "the program zfs is not on PATH: install ZFS"
    directory = settings.artifact_dir or default_artifact_dir()
    while not directory.exists():
        directory = directory.parent
    try:
        done = subprocess.run(
            ["zfs", "list", "-Hp", "-o", "name", str(directory)], capture_output=True, text=True, timeout=ZFS_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"zfs cannot be asked: {error}"
    if done.returncode != 0:
        message = done.stderr.strip()
        return f"{directory} does not lie on ZFS ({message}): choose a place that does with --propolis-artifact-dir"
    return None
