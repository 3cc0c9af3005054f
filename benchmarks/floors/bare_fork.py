"""A fork by hand: QEMU, its monitor and its shell over raw sockets, from a template that the project has made."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from pytest_propolis.agent_api.guest_ports import PORT_COUNT, SHELL_PORT
from pytest_propolis.agent_api.templates import STATE_FILE, blank_file, disk_file
from pytest_propolis.console.shell_protocol import typed_command
from pytest_propolis.console.transports.port_loop import typed_command_for_port
from pytest_propolis.engine.templates.template import Template, with_disks_in
from pytest_propolis.guests.fork_identity import await_identity_command, identity_command
from pytest_propolis.storage.user_directories import template_directory

from ..common.harness import Harness

__all__ = ["BareFork", "place_of_template"]

SCRATCH = "/run/.propolis-wake"
TIMEOUT_S = 60.0


class BareFork:
    """A fork by hand, of a template that the project has made."""

    def __init__(self, place: Path, directory: Path) -> None:
        self._place = place
        self._template = Template.load(place)
        self._directory = Path(tempfile.mkdtemp(dir=directory))
        self._received = b""
        self._silent: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._line.close()
        self._monitor.close()
        for end in self._silent:
            end.close()

    def restore(self) -> None:
        for index in range(self._template.disks):
            shutil.copyfile(self._place / blank_file(index), self._directory / disk_file(index))
        self._line, line = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        self._line.settimeout(TIMEOUT_S)
        arguments = self._template.arguments(
            spec=with_disks_in(self._template.spec, self._directory),
            template_directory=self._place,
            accelerator="tcg",
            tag="bare",
            generation=uuid4(),
        )
        # The guest's shell is at the end of the line: of a guest port, or of the serial port. A port without another
        # side is at its end for the guest: it would end the processes that read from it.
        shell = f"port{SHELL_PORT}" if self._template.guest_ports else "com1"
        ports = [f"port{number}" for number in range(1, PORT_COUNT + 1)] if self._template.guest_ports else []
        silent = {name: self._silent_line() for name in ports if name != shell}
        devices = [
            argument for name in ("com1", "com2") if name != shell for argument in ("-chardev", f"null,id={name}")
        ]
        devices += [argument for name, end in silent.items() for argument in _socket(name, end)]
        fds = (line.fileno(), monitor.fileno(), *(end.fileno() for end in silent.values()))
        with line, monitor:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", *arguments),
                    *(*_socket(shell, line), *devices, *_socket("mon", monitor)),
                    *("-mon", "chardev=mon,mode=control", "-incoming", "defer"),
                ],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
            )
        self._answers = self._monitor.makefile("rb")
        self._answers.readline()
        self._execute("qmp_capabilities")
        capabilities = [{"capability": name, "state": True} for name in ("events", "x-ignore-shared")]
        self._execute("migrate-set-capabilities", capabilities=capabilities)
        with (self._place / STATE_FILE).open("rb") as state:
            socket.send_fds(self._monitor, [json.dumps(_command("getfd", fdname="s")).encode()], [state.fileno()])
            self._answer()
            self._execute("migrate-incoming", uri="fd:s")
            while json.loads(self._answers.readline()).get("data", {}).get("status") != "completed":
                pass

    def _silent_line(self) -> socket.socket:
        """Return a line at whose other side nothing is read or written."""
        kept, end = socket.socketpair()
        self._silent += [kept, end]
        return end

    def run_on(self) -> None:
        self._execute("cont")

    def pause(self) -> None:
        self._execute("stop")

    def run(self, command: str) -> None:
        typed = (typed_command_for_port if self._template.guest_ports else typed_command)(command)
        self._line.sendall(typed.text.encode())
        while typed.succeeded.encode() not in self._received:
            self._received += self._line.recv(1 << 16)

    def assign_identity(self, name: str, *, again: bool = False) -> None:
        """Give the guest an identity, with the project's own command.

        :param again: re-arm it for another identity.
        """
        command = identity_command(SCRATCH, name=name)
        self.run(f"{command} && {await_identity_command(SCRATCH)}" if again else command)

    def _execute(self, command: str, **arguments: Any) -> None:
        self._monitor.sendall(json.dumps(_command(command, **arguments)).encode())
        self._answer()

    def _answer(self) -> None:
        while "return" not in (answer := json.loads(self._answers.readline())):
            if "error" in answer:
                raise RuntimeError(answer["error"]["desc"])


async def place_of_template(harness: Harness, guest: str) -> Path:
    """Return the directory of a guest's template, which is made if it does not exist."""
    vm = await harness.factory.start("first", guest=guest)
    await vm.aclose()
    (key,) = harness.host.templates.values()
    return template_directory(None) / "derived" / key


def _socket(name: str, end: socket.socket) -> tuple[str, str]:
    return "-chardev", f"socket,id={name},fd={end.fileno()}"


def _command(name: str, **arguments: Any) -> dict[str, Any]:
    return {"execute": name, "arguments": arguments}
