"""Processes on illumos: the binary files of procfs, proc(5)."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final, final

from ..interface import ProcessStatus
from .psinfo import PSINFO_BYTES, Psinfo

__all__ = ["PFEXEC", "IllumosProcesses", "privileged_kill"]

PCKILL: Final = 9
"""The control message that posts a signal: two longs, this and the signal."""

STRING_BYTES: Final = 1 << 12
LARGEST_STRINGS: Final = 1 << 12
LOOK_S: Final = 0.1
"""How often a wait reads the status again, beside waiting for the kernel's report."""

PFEXEC: Final = "pfexec"
_TIMEOUT_S: Final = 10.0

Kill = Callable[[int, signal.Signals], None]
"""Signals a process that has more privileges than this one."""


def privileged_kill(target: int, number: signal.Signals) -> None:
    """Run ``pfexec kill``: a program that was started with ``pfexec`` cannot be signalled without it.

    :param target: a pid, or the negative number of a process group.
    :raises PermissionError: when there is no `pfexec`, or it refuses.
    """
    pfexec = shutil.which(PFEXEC)
    if pfexec is None:
        raise PermissionError(f"process {target} may not be signalled: there is no pfexec on PATH")
    command = [pfexec, "kill", f"-{number.name.removeprefix('SIG')}", "--", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PermissionError(f"process {target} may not be signalled: {error}") from None
    if done.returncode != 0:
        raise PermissionError(f"process {target} may not be signalled: {done.stderr.strip()}")


@final
class IllumosProcesses:
    """The processes that procfs shows.

    :param root: where it is mounted.
    """

    def __init__(self, root: Path, *, kill: Kill) -> None:
        self._root = root
        self._kill = kill

    def boot_id(self) -> str:
        return self._boot_id

    def pid_namespace(self) -> str:
        """A zone shares its pids with the global zone, so they mean the same everywhere."""
        return ""

    def pids(self) -> list[int]:
        try:
            return [int(path.name) for path in self._root.iterdir() if path.name.isdigit()]
        except OSError:
            return []

    def status(self, pid: int) -> ProcessStatus | None:
        """Read the status. The start time is in nanoseconds since 1970."""
        found = self.psinfo(pid)
        return ProcessStatus(found.start_ns, found.parent, is_dead=found.lwps == 0) if found else None

    def real_uid(self, pid: int) -> int | None:
        found = self.psinfo(pid)
        return found.real_uid if found else None

    def command_line(self, pid: int) -> bytes:
        """Read the arguments from the process's memory; the first 80 characters where that is not allowed."""
        found = self.psinfo(pid)
        if found is None:
            return b""
        strings = self._strings(pid, found, found.argument_vector, found.argument_count)
        return strings or found.arguments.replace(b" ", b"\0") + b"\0"

    def environment(self, pid: int) -> bytes:
        found = self.psinfo(pid)
        return self._strings(pid, found, found.environment_vector, LARGEST_STRINGS) if found else b""

    @property
    def can_open(self) -> bool:
        return True

    @contextmanager
    def open(self, pid: int) -> Iterator[_OpenProcess]:
        with contextlib.ExitStack() as stack:
            status = _opened(stack, self._root / str(pid) / "psinfo", os.O_RDONLY)
            control = None
            with contextlib.suppress(OSError):  # it has more privileges than this process
                control = _opened(stack, self._root / str(pid) / "ctl", os.O_WRONLY)
            process = _OpenProcess(pid, status, control, self._kill)
            if process.is_gone:  # else the control file is that of the same process
                raise ProcessLookupError(f"there is no process {pid}")
            yield process

    def psinfo(self, pid: int) -> Psinfo | None:
        """Read the psinfo of a process; return None if it has ended."""
        try:
            return Psinfo.parse((self._root / str(pid) / "psinfo").read_bytes())
        except (OSError, ValueError):
            return None

    @cached_property
    def _boot_id(self) -> str:
        """Return the start time of `init`: each zone boots its own."""
        found = self.psinfo(1)
        return str(found.start_ns) if found else ""

    def _strings(self, pid: int, found: Psinfo, vector: int, most: int) -> bytes:
        """Read the strings of a vector of pointers in the memory of another process."""
        if not vector:
            return b""
        try:
            memory = os.open(self._root / str(pid) / "as", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return b"".join(_read_strings(memory, vector, found.pointer_bytes, most))
        except OSError:
            return b""
        finally:
            os.close(memory)


class _OpenProcess:
    """A process by its open status and control files, which stay its own.

    :param control: None where it may not be controlled.
    """

    def __init__(self, pid: int, status: int, control: int | None, kill: Kill) -> None:
        self._pid = pid
        self._status = status
        self._control = control
        self._kill = kill

    @property
    def is_gone(self) -> bool:
        try:
            return Psinfo.parse(os.pread(self._status, PSINFO_BYTES, 0)).lwps == 0
        except (OSError, ValueError):
            return True

    def signal(self, number: signal.Signals) -> None:
        if self._control is not None:
            try:
                os.write(self._control, struct.pack("@ll", PCKILL, number))
            except FileNotFoundError:
                raise ProcessLookupError(f"there is no process {self._pid}") from None
        elif self.is_gone:
            raise ProcessLookupError(f"there is no process {self._pid}")
        else:
            self._kill(self._pid, number)

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait for the hang-up that the kernel reports on the file of a process that ends (as pwait(1))."""
        deadline = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self._status, 0)  # a hang-up is always reported
        while not self.is_gone:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return False
            if poller.poll(1000 * min(LOOK_S, remaining_s)):
                return True
        return True


def _opened(stack: contextlib.ExitStack, path: Path, mode: int) -> int:
    try:
        descriptor = os.open(path, mode | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {path.parent.name}") from None
    stack.callback(os.close, descriptor)
    return descriptor


def _read_strings(memory: int, vector: int, pointer_bytes: int, most: int) -> Iterator[bytes]:
    form = "@I" if pointer_bytes == 4 else "@Q"
    for index in range(most):
        pointer = os.pread(memory, pointer_bytes, _offset(vector + index * pointer_bytes))
        if len(pointer) < pointer_bytes or not (address := struct.unpack(form, pointer)[0]):
            return
        yield _read_string(memory, address)


def _read_string(memory: int, address: int) -> bytes:
    """Return a string with its NUL. It may lie at the end of what is mapped, so that a read gives less."""
    text = b""
    while data := os.pread(memory, STRING_BYTES - (address + len(text)) % STRING_BYTES, _offset(address + len(text))):
        head, end, _ = data.partition(b"\0")
        text += head + end
        if end:
            return text
    return text + b"\0"


def _offset(address: int) -> int:
    """Return an address as an offset: those of the upper half, where stacks are, are negative ones."""
    return address - (1 << 64) if address >= 1 << 63 else address
