"""The guest's side of a transfer: short scripts run by its shell, and errors that name the file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec

from ...console.channels.channel import ByteChannel, Exchanged, Garbled
from ...console.read_eval_loop import quoted
from ...console.shell import Shell
from ...errors import ConsoleError, FileTransferError, PropolisError, ShellLost
from ...terminal_text import abbreviated
from .remote_path import RemotePath

__all__ = ["GuestSide"]

ATTEMPTS: Final = 3
SCRIPT_TIMEOUT_S: Final = 120.0
CLEANING_TIMEOUT_S: Final = 20.0
ERROR_CHARACTERS: Final = 1000


class GuestSide(msgspec.Struct, frozen=True, kw_only=True):
    """One file or directory in one guest.

    :param vm: the VM's name, for errors.
    :param operation: what is being done, for errors.
    """

    shell: Shell
    channel: ByteChannel
    path: RemotePath
    vm: str
    operation: str

    async def run(self, script: str) -> str:
        """Run a script, and return its output.

        :raises FileTransferError: when its status is not 0.
        """
        ended = await self.shell.run(
            self._in_own_shell(script) + " 2>&1", timeout_s=SCRIPT_TIMEOUT_S, check=False, note=self.operation
        )
        self.require(Exchanged(status=ended.status, errors=ended.text))
        return ended.text

    async def upload(self, script: str, source: Callable[[], AsyncIterator[bytes]]) -> None:
        """Run a script with a stream as its input; repeat it with a new stream if that is damaged."""
        command = self._in_own_shell(script)
        self.require(await self._repeated(lambda: self.channel.upload(command, source(), note=self.operation)))

    async def download(self, script: str, sink: Callable[[], Callable[[bytes], None]]) -> str:
        """Run a script, and give its output to a sink; to a new one from the beginning if that is damaged.

        Returns what it has written to standard error.
        """
        command = self._in_own_shell(script)
        ended = await self._repeated(lambda: self.channel.download(command, sink(), note=self.operation))
        self.require(ended)
        return ended.errors

    async def _repeated(self, exchange: Callable[[], Awaitable[Exchanged]]) -> Exchanged:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await exchange()
            except Garbled as error:
                if attempt == ATTEMPTS:
                    raise self.error(f"{error}, {attempt} times") from None
        raise AssertionError

    @contextlib.asynccontextmanager
    async def cleaned_up(self) -> AsyncIterator[None]:
        """Remove the temporary file if the transfer fails or is cancelled."""
        try:
            yield
        except (ConsoleError, ShellLost):
            raise  # there is no shell any more
        except BaseException:
            with contextlib.suppress(PropolisError, TimeoutError):
                async with asyncio.timeout(CLEANING_TIMEOUT_S):
                    await self.run("rm -rf @PART@")
            raise

    def require(self, ended: Exchanged) -> None:
        if ended.status:
            reason = ended.errors.replace(self.path.temporary, str(self.path)).strip()
            raise self.error(
                abbreviated(reason or f"the guest's command ended with status {ended.status}", ERROR_CHARACTERS)
            )

    def error(self, message: str, **context: Any) -> FileTransferError:
        return FileTransferError(
            f"{self.path}: {message}",
            path=str(self.path),
            vm=self.vm,
            operation=self.operation,
            log_path=str(self.shell.log_path),
            **context,
        )

    def _in_own_shell(self, script: str) -> str:
        # In a shell of its own: options, functions and aliases of the test's shell do not matter there.
        return f"sh -c {quoted(self.path.fill(script))}"
