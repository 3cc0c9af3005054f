"""The loader: the program that a host's own Python runs first, before this project exists there.

Its text is sent over the standard input of an SSH session, so it imports only the standard library. It describes the
host, unpacks the bundle unless it already exists, and continues as the bundle's watchdog, or as a command.

Every line to the other side begins with `LINE_PREFIX`: the login shell's start-up files may print, too.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import io
import json
import mmap
import os
import platform
import shutil
import sys
import tempfile
import time
import zipfile
from typing import Any

LINE_PREFIX = "propolis1 "
GOODBYE = b"q"
"""What the link process sends the watchdog when its last client has left: an agent that keeps VMs may stay."""

NEEDED_BYTES = 25 << 20
UNUSED_S = 30 * 86400.0
FILES = "files"
"""The directory beside that of the bundles for files that were sent by their content; each is in one of its own."""


def send(message: dict[str, Any]) -> None:
    """Send a message to the link process."""
    sys.stdout.write(f"{LINE_PREFIX}{json.dumps(message)}\n")
    sys.stdout.flush()


def facts() -> dict[str, Any]:
    """Return the facts about this host that the link process needs."""
    return {
        "python": {
            "version": list(sys.version_info[:3]),
            "implementation": sys.implementation.name,
            "system": sys.platform,
            "machine": platform.machine(),
            "libc": list(platform.libc_ver(sys.executable)),
        },
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "uid": os.geteuid(),
        "clock_s": time.time(),
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
    }


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 # pathlib's import would cost each start 10 ms
            return file.readline().strip()
    except OSError:
        return ""


def candidate_directories() -> list[str]:
    """Return the directories that may take bundles, best first."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    private = f"propolis-{os.geteuid()}"
    bases = [f"{cache}/propolis", f"/var/tmp/{private}", runtime and f"{runtime}/propolis-bundles", f"/tmp/{private}"]  # noqa: S108
    return [f"{base}/bundles" for base in bases if base]


def obstacle(directory: str) -> str | None:
    """Return why a directory cannot take a bundle, or None; it is made if it is missing."""
    try:
        for path in (os.path.dirname(directory), directory):  # noqa: PTH120
            # The mode that makedirs is given holds for the last directory only.
            os.makedirs(path, 0o700, exist_ok=True)  # noqa: PTH103
            found = os.lstat(path)
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                return f"other users may write to {path}"
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(4096))
            file.flush()
            # What mmap refuses here, the dynamic linker could not map either.
            mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        space = os.statvfs(directory)
    except OSError as error:
        return "it is mounted noexec" if isinstance(error, PermissionError) and error.errno == 1 else error.strerror
    if space.f_bavail * space.f_frsize < NEEDED_BYTES:
        return f"less than {NEEDED_BYTES >> 20} MiB are free there"
    return None


def lock(target: str) -> int | None:
    """Return a descriptor that keeps others from removing an unpacked bundle, or None if it is not there."""
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat(target)):  # noqa: PTH116
            os.utime(descriptor)
            return descriptor
    except FileNotFoundError:
        pass  # removed before it was locked
    os.close(descriptor)
    return None


def unpack(data: bytes, target: str) -> None:
    """Unpack a bundle; of several loaders that do so at once, the first wins.

    :raises OSError: when there is no space for it; nothing stays.
    """
    part = tempfile.mkdtemp(prefix=".", dir=os.path.dirname(target))  # noqa: PTH120
    descriptor = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with zipfile.ZipFile(io.BytesIO(data)) as bundle:
            bundle.extractall(part)
        os.sync()  # a directory that is there is complete, also after a loss of power
        os.rename(part, target)  # noqa: PTH104 # fails where the target is there: it is not empty
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        if not os.path.isdir(target):  # noqa: PTH112
            raise
    finally:
        os.close(descriptor)


def sweep(directory: str) -> None:
    """Remove from a directory what broken loaders left, and what was not used for `UNUSED_S`."""
    for name in os.listdir(directory):  # noqa: PTH208
        path = f"{directory}/{name}"
        try:
            if not name.startswith(".") and time.time() - os.lstat(path).st_mtime < UNUSED_S:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(descriptor)


def find_bundle_directory() -> tuple[str | None, dict[str, str]]:
    """Return the first directory that can take a bundle, and why those before it cannot."""
    tried: dict[str, str] = {}
    for directory in candidate_directories():
        reason = obstacle(directory)
        if reason is None:
            return directory, tried
        tried[directory] = reason
    return None, tried


def call(order: dict[str, Any]) -> None:
    """Call a function of the bundle, in place of a watchdog: it finds the directories that an agent would have."""
    os.environ.pop("XDG_RUNTIME_DIR", None)
    os.environ.update(order["environment"])
    sys.argv = ["propolis"]
    module, _, name = order["program"].partition(":")
    getattr(importlib.import_module(module), name)(order["arguments"])


def main() -> None:
    """Speak with the link process until the agent of this host has ended."""
    directory, tried = find_bundle_directory()
    send({"facts": {**facts(), "bundle_directory": directory, "tried": tried}})
    order = json.loads(sys.stdin.buffer.readline())
    if directory is None:
        return None
    target = f"{directory}/{order['sha256'][:32]}"
    held = lock(target)
    send({"need": held is None})
    if held is None:
        data = sys.stdin.buffer.read(order["size"])
        if hashlib.sha256(data).hexdigest() != order["sha256"]:
            return send({"error": "the bundle did not arrive as it was sent"})
        try:
            sweep(directory)
            if os.path.isdir(files := f"{os.path.dirname(directory)}/{FILES}"):  # noqa: PTH112, PTH120
                sweep(files)
            unpack(data, target)
        except OSError as error:
            return send({"error": f"{directory}: {error.strerror}", "full": error.errno in (28, 122)})
        held = lock(target)
    sys.path.insert(0, target)
    if "program" in order:
        send({"started": True})
        return call(order)
    from pytest_propolis.hosts.ssh.watchdog import supervise

    supervise(order, bundle=target, bundle_lock=held, send=send)
    return None


if __name__ == "__main__":
    main()
