"""A Debian guest with ZFS: its build, its adapter, and a pool in it.

Build it by hand, and run the tests that need it. DKMS compiles the module, which takes some ten minutes, once::

    python tests/support/zfs_guest.py
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import ClassVar, Final, final

import pytest

from pytest_propolis import TestVm
from pytest_propolis.guests.adapter import GuestImage
from pytest_propolis.guests.debian import Debian
from pytest_propolis.operating_system.python_processes import write_python_script
from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.debian import DebianBuild
from pytest_propolis.storage.programs import Finished
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.storage.user_directories import default_artifact_dir

__all__ = ["BUILD", "POOL_MIB", "DebianZfs", "GuestExecutor", "make_pool", "needs_zfs_guest", "zfs_program"]

POOL_MIB: Final = 256
COMMAND_TIMEOUT_S: Final = 120.0

# DKMS compiles for the kernel that runs; the guest's is another one.
_COMPILE: Final = """
kernel=$(ls "$1/lib/modules" | tail -n 1)
chroot "$1" dkms autoinstall -k "$kernel"
chroot "$1" depmod "$kernel"
chroot "$1" modinfo -k "$kernel" zfs > /dev/null
chroot "$1" apt-get clean
"""

_PROGRAM: Final = """\
import json, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    line.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    status, output, errors = json.load(line.makefile())
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(status)
"""

BUILD: Final = DebianBuild(
    extra_packages=("linux-headers-cloud-amd64", "zfs-dkms", "zfsutils-linux"),
    extra_components=("contrib",),
    extra_hook=_COMPILE,
    disk_mib=4096,
    variant="-zfs",
)


needs_zfs_guest = pytest.mark.skipif(
    not (default_artifact_dir() / "derived" / BUILD.key / BUILD.disk).exists(),
    reason="the guest with ZFS is not built: `python tests/support/zfs_guest.py` does it",
)


class DebianZfs(Debian):
    """Debian with the ``zfs`` module, ``zfs`` and ``zpool``."""

    name: ClassVar[str] = "debian-zfs"
    image: ClassVar[GuestImage] = GuestImage(
        kernel=Artifact("debian-zfs-kernel", BUILD.kernel, None, BUILD),
        initrd=Artifact("debian-zfs-initrd", BUILD.initrd, None, BUILD),
        command_line=Debian.image.command_line,
        disk=Artifact("debian-zfs-disk", BUILD.disk, None, BUILD),
    )
    minimum_memory_mib: ClassVar[int] = 768


@final
class GuestExecutor:
    """Runs programs in a guest.

    :param commands: receives each command line that was run.
    """

    def __init__(self, vm: TestVm) -> None:
        self._vm = vm
        self.commands: list[str] = []

    async def run(self, argv: Sequence[str]) -> Finished:
        line = shlex.join(argv)
        self.commands.append(line)
        result = await self._vm.run_result(f"LC_ALL=C {line}", timeout_s=COMMAND_TIMEOUT_S)
        # They share one serial line; what succeeds writes no errors, and what fails no output.
        output, complaint = (result.text, "") if result.status == 0 else ("", result.text)
        return Finished(result.status, f"{output}\n" if output else "", complaint)

    async def describe(self, path: Path) -> str | None:
        result = await self._vm.run_result(f"stat -L -c '%i %s %Y %y' {shlex.quote(str(path))}")
        return result.text if result.status == 0 else None


@contextlib.asynccontextmanager
async def zfs_program(executor: GuestExecutor, directory: Path) -> AsyncIterator[Path]:
    """Write a program ``zfs`` into a directory, which runs that of the guest; return its path."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        finished = await executor.run(["zfs", *json.loads(await reader.readline())])
        writer.write(json.dumps([finished.status, finished.output, finished.stderr]).encode())
        writer.close()

    with tempfile.TemporaryDirectory(prefix="zfs-") as place:
        address = str(Path(place, "socket"))
        program = directory / "zfs"
        write_python_script(program, _PROGRAM.format(address=address))
        async with await asyncio.start_unix_server(serve, address):
            yield program


async def make_pool(vm: TestVm, name: str, *, size_mib: int = POOL_MIB) -> None:
    """Make a pool on a file, with a file system that holds an image of 16 MiB."""
    await vm.run("modprobe zfs", timeout_s=COMMAND_TIMEOUT_S)
    await vm.run(f"truncate -s {size_mib}M /var/tmp/{name}.vdev")
    await vm.run(f"zpool create -o cachefile=none {name} /var/tmp/{name}.vdev", timeout_s=COMMAND_TIMEOUT_S)
    await vm.run(f"zfs create {name}/images && truncate -s 16M /{name}/images/disk.raw")
    await vm.run(f"printf original | dd of=/{name}/images/disk.raw conv=notrunc status=none; zpool sync {name}")


def main() -> None:
    """Build the guest if it is not there, and run the tests that need it."""
    zfs = Path(__file__).resolve().parent.parent / "storage" / "zfs"
    tests = [str(zfs / name) for name in ("test_zfs_pool.py", "test_zfs_leftovers.py")]
    assert DebianZfs.image.disk is not None
    asyncio.run(ArtifactStore(default_artifact_dir()).get(DebianZfs.image.disk, print))
    sys.exit(pytest.main(["-p", "propolis", *tests, *sys.argv[1:]]))


if __name__ == "__main__":
    main()
