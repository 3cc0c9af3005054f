"""The floor: a guest under QEMU and raw sockets, written by hand. No agent, no HTTP, no websocket, no event loop."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_propolis.console.read_eval_loop import program
from pytest_propolis.console.shell_protocol import new_nonce, new_session
from pytest_propolis.guests import micro

__all__ = ["AlpineFloor", "BareGuest", "GuestFiles", "MicroFloor"]

TIMEOUT_S = 300.0
CPUS = 2
MEMORY_MIB = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFiles:
    """The boot files of a guest.

    :param disk: a qcow2 image, which is not written to; None for a guest without a disk.
    """

    kernel: Path
    initrd: Path
    command_line: str
    disk: Path | None = None


class BareGuest:
    """One guest. It runs from `start` to the end of the ``with`` block.

    The constants that make it the same guest as the project's are the project's own: accelerator and CPU model, the
    kernel's parameters, what is typed at the login, and the read-eval program. All else is written here.

    :param acceleration: QEMU's words for the accelerator and the CPU model.
    :param directory: for the overlay of the guest's disk.
    """

    def __init__(self, files: GuestFiles, *, acceleration: Sequence[str], directory: Path) -> None:
        self._files = files
        self._acceleration = acceleration
        self._directory = directory
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._line.close()

    def start(self) -> None:
        self._line, theirs = socket.socketpair()
        self._line.settimeout(TIMEOUT_S)
        with theirs:
            self._process = subprocess.Popen(
                [*_dies_with_us(), "qemu-system-x86_64", *self._arguments(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        """QEMU's process id: setpriv replaces itself by QEMU."""
        return self._process.pid

    def log_in(self) -> None:
        """Wait for the guest, and log in as the superuser."""
        raise NotImplementedError

    def start_loop(self) -> None:
        """Start the read-eval program in the guest's shell."""
        session = new_session()
        self.send((self.wrapper.replace("{}", program(session)) + "\n").encode())
        self.read_until(b"\x1e%b\x11" % session.encode())

    wrapper = "exec {}"

    def run(self, command: bytes) -> bytes:
        """Run a command of one line, and return its output."""
        nonce = new_nonce().encode()
        self.send(b"%b 0 %b\n" % (nonce, command))
        self.read_until(b"\x1e%b\x02" % nonce)
        output = self.read_until(b"\x1e%b\x03" % nonce)
        status = self.read_until(b"\x04")
        if status != b"0":
            raise RuntimeError(f"{command!r} ended with status {status!r}: {output!r}")
        return output

    def send(self, data: bytes) -> None:
        self._line.sendall(data)

    def read_until(self, mark: bytes) -> bytes:
        """Return the guest's output up to a marker."""
        while (place := self._received.find(mark)) < 0:
            data = self._line.recv(1 << 16)
            if not data:
                raise RuntimeError(f"QEMU ended before it wrote {mark!r}: {self._received[-500:]!r}")
            self._received += data
        found, self._received = self._received[:place], self._received[place + len(mark) :]
        return found

    def _arguments(self, serial_fd: int) -> Sequence[str]:
        return [
            *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc"),
            *self._acceleration,
            *("-smp", str(CPUS), "-m", f"{MEMORY_MIB}M"),
            *("-kernel", str(self._files.kernel), "-initrd", str(self._files.initrd)),
            *("-append", self._files.command_line),
            *("-chardev", f"socket,id=com1,fd={serial_fd}", "-device", "isa-serial,chardev=com1"),
            *self._disk(),
        ]

    def _disk(self) -> Sequence[str]:
        if self._files.disk is None:
            return []
        overlay = self._directory / f"{secrets.token_hex(4)}.qcow2"
        backing = ("-b", str(self._files.disk), "-F", "qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay)], check=True)
        return ["-drive", f"file={overlay},format=qcow2,if=virtio,cache=unsafe,discard=unmap"]


class MicroFloor(BareGuest):
    """The guest ``micro``."""

    wrapper = micro.Micro.shell_wrapper

    def log_in(self) -> None:
        self.read_until(b"~ # ")
        self.send(micro.SET_UP.encode())
        self.read_until(b"micro-is-up\r\n")


class AlpineFloor(BareGuest):
    """The guest ``alpine``."""

    def log_in(self) -> None:
        self.read_until(b"localhost login: ")
        self.send(b"root\n")
        self.read_until(b"localhost:~# ")


def _dies_with_us() -> Sequence[str]:
    return ("setpriv", "--pdeathsig", "KILL", "--")
