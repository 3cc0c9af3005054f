"""The files of the Debian guest: kernel, initial RAM disk and root disk of Debian 12, built on this machine.

mmdebstrap installs the packages, and mke2fs makes a file system of them, without a loop device or a mount on the host.
The build runs in mount and PID namespaces of its own, so that all its processes end with it. An ordinary user becomes
root in a user namespace.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from ..errors import ArtifactError, CapabilityMissing, ResourceExhausted
from ..field_checks import check_fields
from ..operating_system.no_space import reports_no_space
from .programs import run_program
from .progress import Progress

__all__ = ["DEBIAN_ROOT_LABEL", "DebianBuild"]

DEBIAN_ROOT_LABEL: Final = "propolis-root"

_PROGRAMS: Final = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "unshare": "util-linux",
}
_PACKAGES: Final = (
    *("systemd-sysv", "udev", "dbus", "kmod", "procps", "iproute2", "iputils-ping", "e2fsprogs", "util-linux-extra"),
    *("initramfs-tools", "linux-image-cloud-amd64"),
)
_DISK_MIB: Final = 2048
# mke2fs is in a directory that is not on an ordinary user's PATH.
_SYSTEM_PROGRAMS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_SOURCES: Final = Path("/etc/apt")

# In the new system before anything is installed: only what the root disk needs goes into the initial RAM disk, because
# an emulator takes long to unpack it.
_BEFORE: Final = """
mkdir -p "$1/etc/initramfs-tools/conf.d"
printf 'MODULES=list\\nCOMPRESS=gzip\\n' > "$1/etc/initramfs-tools/conf.d/propolis"
printf '%s\\n' virtio_pci virtio_blk nvme ext4 > "$1/etc/initramfs-tools/modules"
"""

# Root logs in without a password, on the serial line as well. A terminal that can do nothing sends no escapes. A test
# guest needs neither timers nor file systems of the host's.
_AFTER: Final = """
chroot "$1" passwd --delete root
echo debian > "$1/etc/hostname"
printf '127.0.0.1 localhost debian\\n' > "$1/etc/hosts"
: > "$1/etc/fstab"
: > "$1/etc/machine-id"
echo 'set enable-bracketed-paste off' >> "$1/etc/inputrc"
mkdir -p "$1/etc/systemd/system/serial-getty@ttyS0.service.d"
printf '[Service]\\nEnvironment=TERM=dumb\\n' > "$1/etc/systemd/system/serial-getty@ttyS0.service.d/propolis.conf"
chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \\
    e2scrub_reap.service fstrim.timer systemd-timesyncd.service systemd-binfmt.service systemd-pstore.service \\
    getty@tty1.service
"""

# As root of a namespace, so that owners and modes are those of the archive.
_MAKE_DISK: Final = """
mkdir tree
tar --extract --preserve-permissions --numeric-owner --exclude='./dev/*' --directory tree --file root.tar
cp tree/boot/vmlinuz-* "$KERNEL"
cp tree/boot/initrd.img-* "$INITRD"
mke2fs -q -t ext4 -L "$LABEL" -m 0 -d tree root.raw "${SIZE_MIB}M"
qemu-img convert -O qcow2 root.raw "$DISK"
"""


class DebianBuild(msgspec.Struct, frozen=True, tag="debian-build"):
    """One file of a Debian system that is built on this machine when one of its files is first needed.

    The packages come from the sources of this machine's apt if it runs the same release, and otherwise from Debian's
    mirror.

    :raises ArtifactError: when a field has a wrong type.
    """

    suite: str = "bookworm"
    extra_packages: tuple[str, ...] = ()
    extra_components: tuple[str, ...] = ()
    """Components of the archive beside those that the sources name, such as ``contrib``."""
    extra_hook: str = ""
    """A shell script that runs at the end; ``$1`` is the directory of the new system."""
    disk_mib: int = _DISK_MIB
    variant: str = ""
    """What the names of the files say of the further packages."""

    def __post_init__(self) -> None:
        check_fields(self, subject=f"Debian system {self.suite!r}", error=ArtifactError)

    @property
    def command(self) -> str:
        """The command with which a user builds it ahead of the tests."""
        return f"propolis setup debian{self.variant}"

    @property
    def kernel(self) -> str:
        return f"debian-{self.suite}{self.variant}-amd64.kernel"

    @property
    def initrd(self) -> str:
        return f"debian-{self.suite}{self.variant}-amd64.initrd"

    @property
    def disk(self) -> str:
        return f"debian-{self.suite}{self.variant}-amd64.qcow2"

    @property
    def filenames(self) -> tuple[str, ...]:
        return (self.kernel, self.initrd, self.disk)

    @property
    def key(self) -> str:
        """A name for the result. It changes with the build instructions, but not with new packages from Debian."""
        shaped_by = repr((self.suite, self._packages, self.disk_mib, _BEFORE, self._after, _MAKE_DISK))
        return f"debian-{self.suite}{self.variant}-{hashlib.sha256(shaped_by.encode()).hexdigest()[:16]}"

    @property
    def _packages(self) -> tuple[str, ...]:
        return (*_PACKAGES, *self.extra_packages)

    @property
    def _after(self) -> str:
        return _AFTER + self.extra_hook

    def __str__(self) -> str:
        return f"a build of Debian {self.suite} on this machine"

    async def make(self, directory: Path, progress: Progress) -> None:
        """Build all files into an empty directory. It takes about two minutes.

        :raises CapabilityMissing: when a program is missing, or this user cannot be root of a namespace.
        :raises ArtifactError: when the build fails, with the last lines of what was said.
        :raises ResourceExhausted: when there is no space left.
        """
        _require_programs()
        await _require_namespaces()
        progress(f"building Debian {self.suite} with mmdebstrap: about a minute")
        await _run(self._bootstrap(directory), directory)
        progress("making its root disk")
        variables = {"KERNEL": self.kernel, "INITRD": self.initrd, "DISK": self.disk}
        variables |= {"LABEL": DEBIAN_ROOT_LABEL, "SIZE_MIB": str(self.disk_mib)}
        await _run([*_as_its_root(), "sh", "-euc", _MAKE_DISK], directory, **variables)
        shutil.rmtree(directory / "tree", ignore_errors=True)

    def _bootstrap(self, directory: Path) -> list[str]:
        # mmdebstrap's own mode for ordinary users works as a subordinate user, and those may not enter the directory.
        return [
            *_as_its_root(),
            *("mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(self._packages)}"),
            *(() if os.geteuid() == 0 else ("--skip=chroot/mount/sys",)),  # only root of a network namespace mounts it
            "--dpkgopt=path-exclude=/usr/share/{man,doc,locale}/*",
            *(f"--setup-hook={_BEFORE}", f"--customize-hook={self._after}"),
            *(self.suite, str(directory / "root.tar"), *self._mirror(directory)),
        ]

    def _mirror(self, directory: Path) -> list[str]:
        """Return apt's source files for the suite, as copies if components are added."""
        files = _source_files(self.suite)
        if not self.extra_components:
            return [str(file) for file in files]
        copies = [directory / f"propolis-{file.name}" for file in files]
        for file, copy in zip(files, copies, strict=True):
            copy.write_text(_with_components(file.read_text(), self.extra_components))
        return [str(copy) for copy in copies] or [f"--components={','.join(('main', *self.extra_components))}"]


def _as_its_root() -> tuple[str, ...]:
    """Return the command prefix that runs a command as root of its own namespaces, whose processes all end with it."""
    command = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    return command if os.geteuid() == 0 else (*command, "--user", "--map-auto", "--map-root-user")


def _source_files(suite: str) -> list[Path]:
    """Return apt's source files that name this suite only; if there are none, mmdebstrap uses Debian's mirror."""
    files = [_SOURCES / "sources.list", *sorted((_SOURCES / "sources.list.d").glob("*"))]
    return [file for file in files if file.suffix in (".list", ".sources") and _names_only(suite, file)]


def _with_components(sources: str, components: Sequence[str]) -> str:
    """Return the text of a source file with further components of each archive that has ``main``."""
    return re.sub(r"^((?:Components:|deb\s).*\bmain\b.*)$", rf"\1 {' '.join(components)}", sources, flags=re.MULTILINE)


def _names_only(suite: str, file: Path) -> bool:
    if not file.is_file():
        return False
    text = file.read_text(errors="replace")
    suites = re.findall(r"^Suites:(.*)$", text, re.MULTILINE) or re.findall(
        r"^deb\s+(?:\[.*?\]\s*)?\S+\s+(\S+)", text, re.MULTILINE
    )
    named = {word for line in suites for word in line.split()}
    return bool(named) and named <= {suite, f"{suite}-updates", f"{suite}-security"}


def _require_programs() -> None:
    programs = _PROGRAMS if os.geteuid() == 0 else {**_PROGRAMS, "newuidmap": "uidmap"}
    missing = [package for program, package in programs.items() if shutil.which(program, path=_search_path()) is None]
    if missing:
        raise CapabilityMissing(
            f"to build Debian, this machine lacks {', '.join(missing)}", hint=f"apt-get install {' '.join(missing)}"
        )


async def _require_namespaces() -> None:
    """Check that this user can become root of user namespaces, as the build does."""
    finished = await run_program([*_as_its_root(), "true"])
    if finished.status != 0:
        raise CapabilityMissing(
            f"to build Debian, this user must be able to become root of namespaces: {finished.last_lines(2)}",
            hint=f"allow user namespaces, and give user {os.geteuid()} a range in /etc/subuid and /etc/subgid "
            "(usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME); or set it up as root",
        )


def _search_path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_PROGRAMS))


async def _run(argv: Sequence[str], directory: Path, **variables: str) -> None:
    environment = {"TMPDIR": str(directory), "PATH": _search_path(), **variables}
    finished = await run_program(argv, environment=environment, directory=directory, ends_with_parent=True)
    if finished.status == 0:
        return
    log = finished.last_lines(12)
    if reports_no_space(finished.stderr):
        raise ResourceExhausted(f"no space left in {directory} to build Debian:\n{log}", hint="free some 2 GiB there")
    raise ArtifactError(
        f"building Debian failed (status {finished.status}):\n{log}",
        hint="check that this machine reaches a mirror of Debian: apt-get update",
    )
