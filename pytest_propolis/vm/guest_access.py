"""Access to the guest of a VM: commands, programs, files."""

from __future__ import annotations

import contextlib
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..console.channels.guest_ports import GuestPorts
from ..console.commands import CommandResult
from ..console.console import Console
from ..console.kernel.ends import EndKind, ExpectedEnd, expected_end
from ..console.kernel.expected_panic import expected_panic
from ..console.kernel.failures import Expectation, KernelFailures, kernel_messages
from ..console.shell import Shell
from ..errors import (
    ConfigError,
    ShellError,
)
from ..propolis_api import InstanceState
from .instance import OUTPUT_TIMEOUT_S, STATE_TIMEOUT_S, Instance
from .migration import TERMINAL
from .server_handle import ServerHandle
from .timings import Timings

if TYPE_CHECKING:
    from ..console.channels.process import GuestProcess
    from .files.progress import OnProgress
    from .files.remote_path import GuestPath
    from .files.transfers import FileTransfers, LocalPath

__all__ = ["GuestAccess"]

COMMAND_TIMEOUT_S: Final = 300.0


class GuestAccess(Instance):
    """Access to a VM's guest, over its console or its guest ports.

    :param vm_id: the VM's id at its agent.
    :param has_ports: whether commands, files and streams go over guest ports: ``VmConfig(channel="port")``.
    """

    def __init__(self, *, name: str, server: ServerHandle, log_path: Path, phases: Timings | None) -> None:
        super().__init__(name=name, server=server, log_path=log_path)
        client = server.client
        self.id = server.vm_id
        self.phases = phases or Timings()
        """How long the steps up to its first command took."""
        self.has_ports = server.has_ports
        self.kernel_failures = KernelFailures(name)
        """What its console has shown of panics, oopses and BUGs that no test expected."""
        client.on_stop = lambda: self.kernel_failures.ends.allow()  # a migration replaces them
        self._ports = GuestPorts(client.endpoint, vm=name)
        self._shell: Shell | None = None

    @property
    def shell(self) -> Shell:
        """The guest's shell, which `run` uses.

        :raises ShellError: before the VM is created.
        """
        self._require_loop()
        if self._shell is None:
            raise ShellError("the guest accepts no commands yet", vm=self.name, hint="call `boot` first")
        return self._shell

    async def run(
        self,
        command: str,
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = True,
        on_output: Callable[[str], None] | None = None,
    ) -> str:
        """Run a shell command in the guest, and return its output without trailing newlines.

        Commands share one shell, with its directory and variables. Standard error is part of the output.

        :param on_output: called with the output as it arrives, in pieces of any size.
        :raises CommandFailed: when its exit status is not 0; not with ``check=False``.
        :raises CommandTimeout: when it does not end in time; it is interrupted.
        :raises ShellLost: when the guest's shell does not answer.
        :raises ConsoleClosed: when the VM stops meanwhile.
        """
        return (await self.run_result(command, timeout_s=timeout_s, check=check, on_output=on_output)).text

    async def run_bytes(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S, check: bool = True) -> bytes:
        """As `run`, but return the output unchanged, as bytes."""
        return (await self.run_result(command, timeout_s=timeout_s, check=check)).output

    async def run_result(
        self,
        command: str,
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = False,
        on_output: Callable[[str], None] | None = None,
        separate_stderr: bool = False,
    ) -> CommandResult:
        """As `run`, but return the exit status as well, which is not checked by default.

        Standard output and standard error arrive together as `output`, in the order of writing. With
        ``separate_stderr`` they are `stdout` and `stderr`, and their order is lost; `on_output` gets the former.

        :raises CapabilityMissing: when ``separate_stderr`` is on, and the VM has no guest ports: it was not created
            with ``VmConfig(channel="port")``.
        """
        with self.phases.during("first command"):
            return await self.shell.run(
                command,
                timeout_s=timeout_s,
                check=check,
                on_output=_decoded(on_output),
                separate_stderr=separate_stderr,
            )

    async def kernel_messages(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> tuple[str, ...]:
        """Return the lines of the guest's kernel log since its boot, the oldest first.

        They come from the guest's ``dmesg``. If it cannot run, as after a panic, they are the lines on the console
        with the kernel's time: fewer, if the kernel's log level for the console is low.

        :raises ConsoleError: before the VM is created.
        """
        return await kernel_messages(self.console, lambda: self.run("dmesg", timeout_s=timeout_s))

    def expect_panic(self, *, timeout_s: float = OUTPUT_TIMEOUT_S) -> AbstractAsyncContextManager[Expectation]:
        """Expect the guest's kernel to panic in the block. Unexpected panics fail the test.

        ::

            async with vm.expect_panic() as panic:
                await vm.run("echo c > /proc/sysrq-trigger")
            assert panic.line == "Kernel panic - not syncing: sysrq triggered crash"

        The block ends when the panic is over. A wait for the guest that it ends with an error ends the block instead.
        Oopses in the block are expected, too. Continue with `reset` and `wait_to_boot`.

        :param timeout_s: how long the panic may take from the end of the block on.
        :raises ConsoleTimeout: when none comes.
        :raises ConsoleClosed: when the VM stops before.
        """
        return expected_panic(self.kernel_failures, lambda: self.console, timeout_s=timeout_s)

    def expect_reset(self, *, timeout_s: float = OUTPUT_TIMEOUT_S) -> AbstractAsyncContextManager[ExpectedEnd]:
        """Expect the guest to reset its machine in the block. Unexpected resets fail the test.

        ::

            async with vm.expect_reset():
                await vm.run("/opt/tests/triple_fault")
            await vm.wait_to_boot()

        The block ends with the reset. A wait for the guest that it ends with an error ends the block instead.

        :param timeout_s: how long the reset may take from the end of the block on.
        :raises ConsoleTimeout: when none comes; always with a propolis-server, which does not report resets.
        :raises ConsoleClosed: when the VM stops before.
        """
        return self._expected("reset", timeout_s)

    def expect_exit(self, *, timeout_s: float = OUTPUT_TIMEOUT_S) -> AbstractAsyncContextManager[ExpectedEnd]:
        """Expect the VM to stop in the block, by its guest or because QEMU ends; otherwise as `expect_reset`.

        ::

            async with vm.expect_exit() as end:
                os.kill(pid_of_qemu, signal.SIGKILL)
            assert "SIGKILL" in end.reason

        :param timeout_s: how long that may take from the end of the block on.
        :raises ConsoleTimeout: when it does not stop.
        """
        return self._expected("exit", timeout_s)

    def _expected(self, kind: EndKind, timeout_s: float) -> AbstractAsyncContextManager[ExpectedEnd]:
        ends = self.kernel_failures.ends
        return expected_end(kind, ends, lambda: self.console, vm=self.name, timeout_s=timeout_s)

    async def get_state(self) -> InstanceState:
        """Return the VM's state now."""
        state = await self._state()
        if state in TERMINAL:
            self._has_been_seen_to_end()
        return state

    async def wait_for_state(self, state: InstanceState | str, *, timeout_s: float = STATE_TIMEOUT_S) -> None:
        """Wait until the VM is in a state. States that it has left again may be missed.

        :param state: the state, or its name, as in ``"Running"``.
        :raises ConfigError: when there is no state of that name.
        :raises VmStateError: when it can no longer reach that state.
        :raises StateTimeout: when it does not get there in time.
        """
        with self.kernel_failures.ends.acknowledged_by_errors():
            reached = await self._until_state(state, timeout_s=timeout_s)
        if reached in TERMINAL:
            self._has_been_seen_to_end()

    def _has_been_seen_to_end(self) -> None:
        self.kernel_failures.ends.allow()  # its console may close a moment later
        self.kernel_failures.ends.acknowledge()

    @contextlib.asynccontextmanager
    async def process(self, command: str) -> AsyncIterator[GuestProcess]:
        """Start a shell command concurrently with all others, with its own streams; kill it at the end of the block.

        ::

            async with vm.process("tail -f /var/log/messages") as process:
                async for line in process.stdout:
                    ...

        It has its own shell, with the directory and the exported variables of the shared one.

        :raises CapabilityMissing: when the VM has no guest ports: it was not created with ``VmConfig(channel="port")``.
        :raises ShellError: when it cannot be started.
        """
        from ..console.channels.process import guest_process  # here, because most tests start none

        async with guest_process(command, self.shell, self._ports) as process:
            yield process

    async def put(
        self,
        content: LocalPath | bytes,
        remote: GuestPath,
        *,
        mode: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Copy a file, a directory or bytes into the guest, to a path there.

        A file appears under its name, and replaces an existing one, when it is complete; a directory must not exist.
        Modes and links are kept, owners are not.

        :param content: the path of a file or directory on this machine; or bytes, which become a file.
        :param remote: the file's or the directory's own path, not that of the directory in which to put it.
        :param mode: permissions of the file; by default those of the local file, and 0o644 for bytes.
        :param on_progress: called with a `Progress` from time to time.
        :raises FileTransferError: when it fails. A previous file of that name is unchanged then.
        :raises CommandTimeout: when there is no progress for a minute.
        """
        await self._files().put(content, remote, mode=mode, on_progress=on_progress)

    async def get(self, remote: GuestPath, local: LocalPath, *, on_progress: OnProgress | None = None) -> None:
        """Copy a file or a directory out of the guest, in the manner of `put`."""
        await self._files().get(remote, local, on_progress=on_progress)

    async def get_bytes(self, remote: GuestPath) -> bytes:
        """Return the content of a file of the guest, including files without a size, as in ``/proc``.

        :raises FileTransferError: when it cannot be read.
        """
        return await self._files().get_bytes(remote)

    def _files(self) -> FileTransfers:
        from ..console.channels.over_console import ConsoleChannel  # here, because most tests copy nothing
        from ..console.channels.over_port import PortChannel
        from .files.transfers import FileTransfers

        ports = PortChannel(self.shell, self._ports, vm=self.name) if self.has_ports else None
        return FileTransfers(shell=self.shell, channel=ports or ConsoleChannel(self.shell), vm=self.name)

    def debug(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a shell command from a debugger's prompt after a test has failed (``--pdb``), and return its output.

        The command's status is not checked. Elsewhere, await `run`.

        :raises ConfigError: when the VM's event loop runs, as at a breakpoint inside of a test, or is closed.
        """
        if self._loop.is_running() or self._loop.is_closed():
            raise ConfigError(
                "its event loop runs" if self._loop.is_running() else "its event loop is closed",
                vm=self.name,
                hint=f"await `run` in the test, or use `propolis console {self.id}` in another terminal",
            )
        return self._loop.run_until_complete(self.run(command, timeout_s=timeout_s, check=False))

    @contextlib.asynccontextmanager
    async def interactive(self, *, timeout_s: float = OUTPUT_TIMEOUT_S) -> AsyncIterator[Console]:
        """Use the console as a terminal with the user's own shell: for programs that need one, job control, prompts.

        ::

            async with vm.interactive() as console:
                await console.send("sh -c 'echo up; sleep 100'\\n")
                await console.wait_for("\\nup\\n", timeout_s=10)
                await console.send(b"\\x1a")
                await console.wait_for("Stopped", timeout_s=10)

        The shell receives keys typed before the program runs: wait until the program has shown something.

        `run` is refused inside the block.
        """
        async with self.shell.interactive(timeout_s=timeout_s) as console:
            yield console


def _decoded(on_output: Callable[[str], None] | None) -> Callable[[bytes], None] | None:
    """Wrap a function that takes text into one that takes bytes, which may split characters."""
    if on_output is None:
        return None
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    return lambda data: on_output(decoder.decode(data))
