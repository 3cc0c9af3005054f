"""The distributions that an agent requires, and their files for the Python of a host."""

from __future__ import annotations

import asyncio
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, cast

import msgspec

from ...errors import HostError
from ...storage.programs import run_program

__all__ = ["HostPython", "download", "installed_files", "needed_distributions", "platform_tags", "this_python"]

PROJECT: Final = "pytest-propolis"
ABOVE_THE_AGENT: Final = frozenset({"pluggy", "pytest", "pytest-asyncio", "pytest-xdist"})
"""Requirements of this project that the agent does not need."""

OLD_MANYLINUX: Final = {17: "2014", 12: "2010", 5: "1"}
"""Platform tags from before PEP 600, by the minor version of glibc that they mean."""


class HostPython(msgspec.Struct, frozen=True, kw_only=True):
    """The Python of a host, as its loader reports it.

    :param libc: name and version; both are empty for one that cannot be told, as musl.
    """

    version: tuple[int, int, int]
    implementation: str
    system: str
    machine: str
    libc: tuple[str, str]

    @property
    def glibc(self) -> tuple[int, int] | None:
        """The version of glibc, or None for another libc."""
        if self.libc[0] != "glibc":
            return None
        major, minor = self.libc[1].split(".")[:2]
        return int(major), int(minor)

    def runs_files_of(self, other: HostPython) -> bool:
        """Return whether this Python can import packages installed for another one, including extension modules."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("implementation", "system", "machine"))
        if not same or self.version[:2] != other.version[:2] or self.libc[0] != other.libc[0]:
            return False
        return self.glibc is None or other.glibc is None or self.glibc >= other.glibc

    def markers(self) -> dict[str, str]:
        """The environment in which the markers of requirements are evaluated."""
        full = ".".join(map(str, self.version))
        return {
            "implementation_name": self.implementation,
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": {"cpython": "CPython", "pypy": "PyPy"}.get(self.implementation, ""),
            "platform_release": "",
            "platform_system": self.system.capitalize(),
            "platform_version": "",
            "python_full_version": full,
            "python_version": ".".join(map(str, self.version[:2])),
            "sys_platform": self.system,
        }


def this_python() -> HostPython:
    """Return the Python of this process."""
    from .loader import facts

    return msgspec.convert(facts()["python"], HostPython)


def needed_distributions(python: HostPython) -> dict[str, str]:
    """Return the names and versions of what an agent needs beside this project, as installed here.

    :raises HostError: when one of them is not installed here.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    pending = [PROJECT]
    while pending:
        for text in metadata.requires(pending.pop()) or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            wanted = requirement.marker is None or requirement.marker.evaluate({**python.markers(), "extra": ""})
            if not wanted or name in found or name in ABOVE_THE_AGENT:
                continue
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                raise HostError(
                    f"{name}, which agents need, is not installed here", hint=f"pip install {name}"
                ) from None
            pending.append(name)
    return dict(sorted(found.items()))


def installed_files(names: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """Yield the installed files of distributions: their names for an import path, and where they are."""
    for name in names:
        for file in metadata.distribution(name).files or ():
            if file.suffix != ".pyc" and file.name != "RECORD" and ".." not in file.parts:
                yield str(file), Path(str(file.locate()))


def platform_tags(python: HostPython) -> list[str]:
    """Return the platform tags of wheels that the host takes, best first: pip does not derive older ones from newer."""
    if python.glibc is None:
        return [f"musllinux_1_{minor}_{python.machine}" for minor in (2, 1)]
    major, minor = python.glibc
    oldest = 5 if python.machine == "x86_64" else 17
    tags = []
    for number in range(minor, oldest - 1, -1):
        tags.append(f"manylinux_{major}_{number}_{python.machine}")
        if number in OLD_MANYLINUX:
            tags.append(f"manylinux{OLD_MANYLINUX[number]}_{python.machine}")
    return tags


async def download(names: dict[str, str], python: HostPython, directory: Path) -> list[Path]:
    """Return wheels of exactly these versions for a Python that is not this one, in a directory that is made.

    :raises HostError: when pip finds no wheel of one of them.
    """
    if wheels := _complete(names, directory):
        return wheels
    directory.mkdir(parents=True, exist_ok=True)
    short = "".join(map(str, python.version[:2]))
    implementation, abi = ("cp", f"cp{short}") if python.implementation == "cpython" else ("py", "none")
    argv = [sys.executable, "-P", "-m", "pip", "download", "--no-input", "--quiet", "--no-deps"]
    argv += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(directory)]
    argv += ["--implementation", implementation, "--python-version", short]
    argv += [argument for name in dict.fromkeys((abi, "abi3", "none")) for argument in ("--abi", name)]
    argv += [argument for tag in platform_tags(python) for argument in ("--platform", tag)]
    finished = await run_program([*argv, *(f"{name}=={version}" for name, version in names.items())])
    if finished.status != 0:
        version = ".".join(map(str, python.version[:2]))
        raise HostError(
            f"pip finds no wheels for Python {version} on {python.machine}: {finished.last_lines()}",
            hint=f"install the Python of this machine there ({sysconfig.get_python_version()}), or make the wheels "
            "available to pip, as with PIP_FIND_LINKS",
        )
    return await asyncio.to_thread(_require_complete, names, directory)


def _require_complete(names: dict[str, str], directory: Path) -> list[Path]:
    wheels = _complete(names, directory)
    if not wheels:
        raise HostError(f"pip did not put all wheels into {directory}", hint="remove that directory, and try again")
    return wheels


def _complete(names: dict[str, str], directory: Path) -> list[Path]:
    """The wheels of these versions in a directory, or none if one is missing."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    found: dict[tuple[str, str], Path] = {}
    for path in directory.glob("*.whl"):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        found[cast(str, name), str(version)] = path
    wanted = set(names.items())
    return [found[item] for item in sorted(wanted)] if wanted <= found.keys() else []
