"""Probe what this host can do, by exercising each capability."""

# A look at a file's status takes microseconds.

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...agent.hypervisor import require_engine
from ...engine.qemu.accelerator.probe import probe_accelerator
from ...engine.qemu.binary import Qemu, find_firmware, find_qemu
from ...errors import CapabilityMissing, PropolisError
from ...operating_system.registry import system
from ...settings import ENGINE, Settings
from ...storage.programs import run_program
from ...storage.user_directories import cache_directory, default_artifact_dir
from .capability import Capability, try_program
from .propolis_needs import probe_propolis_needs
from .servers import ServerReport, survey_servers

__all__ = ["Capability", "Survey", "survey"]

_FICLONE: Final = 0x40049409
_NO_REFLINKS: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Survey:
    """All probed capabilities of a host.

    :param needed: capabilities without which no VM runs.
    :param useful: capabilities without which some tests are skipped.
    :param servers: the servers of VMs.
    :param server_needs: what server programs need of the operating system.
    """

    needed: tuple[Capability, ...]
    useful: tuple[Capability, ...]
    servers: tuple[ServerReport, ...]
    server_needs: tuple[Capability, ...]

    @property
    def can_run_vms(self) -> bool:
        return all(capability.ok for capability in self.needed)


async def survey(settings: Settings, *, guest_files: Mapping[str, Sequence[Path]]) -> Survey:
    """Probe everything that tests may need from this host. Nothing is installed or left behind.

    :param guest_files: by guest, the files that exist once it is prepared.
    """
    engine = await _qemu_and_accelerator(settings)
    servers = await survey_servers(settings, engine)
    server_needs = await probe_propolis_needs() if system().name == "illumos" else ()
    firmware, guests, reflinks, zfs, namespaces, ssh, etcd = (
        await probe_firmware(),
        await probe_guests(guest_files),
        await probe_reflinks(settings.artifact_dir or default_artifact_dir()),
        *await asyncio.gather(probe_zfs(), probe_network_namespaces(), probe_ssh_server(), probe_etcd()),
    )
    useful = (guests, firmware, reflinks, zfs, namespaces, ssh, etcd)
    if settings.server == ENGINE:
        return Survey(engine, useful, servers, server_needs)
    return Survey(tuple(map(_as_capability, servers[1:])), (*engine, *useful), servers, server_needs)


def _as_capability(server: ServerReport) -> Capability:
    return Capability("server", server.ok, f"{server.server}: {server.detail}", server.remedy)


async def _qemu_and_accelerator(settings: Settings) -> tuple[Capability, Capability]:
    try:
        require_engine()
        qemu = await find_qemu(settings.qemu)
    except CapabilityMissing as error:
        accelerator = Capability("accelerator", ok=False, detail="cannot be tried without QEMU")
        return _failed("QEMU", error), accelerator
    found = Capability("QEMU", ok=True, detail=f"{qemu}, found by: {qemu.origin}")
    return found, await probe_acceleration(qemu, settings)


async def probe_acceleration(qemu: Qemu, settings: Settings) -> Capability:
    """Run a guest under the chosen accelerator."""
    try:
        choice = await probe_accelerator(qemu, wanted=settings.accelerator, cache_dir=cache_directory())
    except PropolisError as error:
        return _failed("accelerator", error)
    return Capability("accelerator", ok=True, detail=f"{choice.name}: {choice.reason}")


def _failed(name: str, error: PropolisError) -> Capability:
    return Capability(name, ok=False, detail=error.message, remedy=error.hint)


async def probe_firmware() -> Capability:
    """Look for UEFI."""
    if firmware := find_firmware():
        return Capability("UEFI firmware", ok=True, detail=str(firmware.code))
    remedy = "install the package ovmf (apt) or edk2-ovmf (dnf)"
    return Capability("UEFI firmware", ok=False, detail="no OVMF images in the usual places", remedy=remedy)


async def probe_guests(guest_files: Mapping[str, Sequence[Path]]) -> Capability:
    """Check which guests have all their files."""
    ready = [name for name, files in guest_files.items() if all(file.is_file() for file in files)]
    missing = [name for name in guest_files if name not in ready]
    parts = [f"ready: {', '.join(ready)}"] if ready else []
    parts += [f"not prepared: {', '.join(missing)}"] if missing else []
    remedy = f"run `propolis setup {' '.join(missing)}`, or let the first test do it" if missing else None
    return Capability("guests", ok=bool(ready), detail="; ".join(parts) or "there are none", remedy=remedy)


async def probe_reflinks(directory: Path) -> Capability:
    """Clone a file in the artifact directory, or in its nearest existing parent."""
    if not system().host.can_clone_files:
        detail, remedy = f"{system().name} has no call for them", "put --propolis-artifact-dir on ZFS, which clones"
        return Capability("reflinks", ok=False, detail=detail, remedy=remedy)
    directory = next(path for path in (directory, *directory.parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as clone:
            source.write(bytes(os.sysconf("SC_PAGE_SIZE")))
            source.flush()
            fcntl.ioctl(clone.fileno(), _FICLONE, source.fileno())
    except OSError as error:
        return _no_reflinks(directory, error)
    return Capability("reflinks", ok=True, detail=f"files in {directory} can be cloned")


def _no_reflinks(directory: Path, error: OSError) -> Capability:
    if error.errno in _NO_REFLINKS:
        detail = f"the file system of {directory} cannot clone files"
        remedy = "put --propolis-artifact-dir on btrfs, or on XFS made with reflink=1; qcow2 overlays are used else"
    else:
        detail = f"{directory} cannot be written: {error.strerror}"
        remedy = "make it writable, or choose another directory with --propolis-artifact-dir"
    return Capability("reflinks", ok=False, detail=detail, remedy=remedy)


async def probe_zfs() -> Capability:
    """List ZFS pools, which requires the kernel module."""
    return await try_program(
        "ZFS",
        ["zpool", "list", "-H", "-o", "name"],
        found=lambda finished: f"pools: {', '.join(finished.output.split()) or 'none'}",
        remedy="install ZFS (apt: zfsutils-linux and a kernel with its module) and load the module: modprobe zfs",
    )


async def probe_network_namespaces() -> Capability:
    """Enter a new network namespace and inspect it with ``ip``."""
    if (here := system().name) != "Linux":
        return Capability(
            "network namespaces", ok=False, detail=f"{here} has none", remedy="run what needs them on Linux"
        )
    as_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return await try_program(
        "network namespaces",
        ["unshare", *as_user, "--net", "ip", "link", "show", "lo"],
        found=lambda _: "in a user namespace" if as_user else "as root",
        remedy="install iproute2, and run as root or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)",
    )


async def probe_etcd() -> Capability:
    """Ask etcd for its version."""
    return await try_program(
        "etcd",
        ["etcd", "--version"],
        found=lambda finished: finished.output.partition("\n")[0],
        remedy="install the package etcd-server (apt) or etcd (dnf); one node needs none",
    )


async def probe_ssh_server() -> Capability:
    """Check that sshd could start with a host key of its own, including its user and directories."""
    with tempfile.TemporaryDirectory(prefix="propolis-") as directory:
        key = Path(directory) / "key"
        with contextlib.suppress(OSError):  # no ssh-keygen: then sshd reports that it has no key
            await run_program(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
        return await try_program(
            "SSH server",
            [shutil.which("sshd") or "/usr/sbin/sshd", "-t", "-f", "/dev/null", "-h", str(key)],
            found=lambda _: "sshd could start",
            remedy="install the package openssh-server; as root it needs the directory /run/sshd and the user sshd",
        )
