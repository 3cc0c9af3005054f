"""One qemu-storage-daemon: serves one file over NBD, under one name at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from qemu.qmp import QMPClient, QMPError

from ...operating_system.child import Child, ChildRecord, Journal, spawn

__all__ = ["StorageDaemon", "StorageDaemonError"]

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

READY_TIMEOUT_S: Final = 30.0
COMMAND_TIMEOUT_S: Final = 10.0
LOOPBACK: Final = "127.0.0.1"
NODE: Final = "served"
SPEED: Final = "speed"


class StorageDaemonError(Exception):
    """Raised when the daemon ends, refuses or does not answer; the text is its own where it has one."""


class StorageDaemon:
    """A process that serves a file on a port of the loopback interface.

    :param program: ``qemu-storage-daemon``.
    :param file: what it serves.
    :param file_format: ``raw`` or ``qcow2``.
    :param log_path: receives what it prints.
    :param journal: records the process.
    """

    def __init__(self, *, program: Path, file: Path, file_format: str, log_path: Path, journal: Journal) -> None:
        self._program = program
        self._file = file
        self._format = file_format
        self._log_path = log_path
        self._journal = journal
        self._record: ChildRecord | None = None
        self._process: Child | None = None
        self._monitor = QMPClient("storage-daemon")
        self._export: str | None = None
        self.port = 0
        """Where its NBD server listens, once it is started."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it; it exports nothing yet.

        :raises StorageDaemonError: when it does not start.
        """
        record = self._record = self._journal.intend()
        monitor, daemon_monitor = socket.socketpair()
        try:
            with socket.socket() as listener, self._log_path.open("ab") as log:
                # QEMU before 8.2 does not set it, and its short answers wait 40 ms; what is accepted inherits it.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                listener.bind((LOOPBACK, 0))
                listener.listen()
                self.port = listener.getsockname()[1]
                fds = [daemon_monitor.fileno(), listener.fileno()]
                arguments = list(self._arguments(*fds))
                self._process = await spawn(
                    self._program,
                    arguments,
                    stdout=log,
                    stderr=log,
                    pass_fds=fds,
                    environment=record.environment,
                )
            record.live(self._process.pid)
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._monitor.connect(monitor)
        except (OSError, QMPError, TimeoutError) as error:
            monitor.close()
            await self.close()
            raise StorageDaemonError(
                f"{self._program} does not serve {self._file}: {self._last_words(error)}"
            ) from None
        except BaseException:
            monitor.close()
            await self.close()
            raise
        finally:
            daemon_monitor.close()

    async def export(self, name: str, *, readonly: bool = False) -> None:
        """Serve the file under a name, and under no other one.

        When this returns, what came in under the former name is written, and nothing more can come.

        :raises StorageDaemonError: when it refuses or does not answer.
        """
        await self.withdraw()
        await self._execute(
            "block-export-add", type="nbd", id=name, name=name, writable=not readonly, **{"node-name": NODE}
        )
        self._export = name

    async def withdraw(self) -> None:
        """Stop serving the file, and disconnect its clients.

        :raises StorageDaemonError: when it refuses or does not answer.
        """
        if self._export is None:
            return
        with self._monitor.listener(("BLOCK_EXPORT_DELETED",)) as deleted:
            await self._execute("block-export-del", id=self._export, mode="hard")
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    await deleted.get()
            except TimeoutError:
                raise StorageDaemonError(f"{self._file} is still in use") from None
        self._export = None

    async def slow_down(self, delay_ms: float) -> None:
        """Pass requests on one by one, with this delay between; 0 for no delay.

        :raises StorageDaemonError: when it refuses or does not answer.
        """
        limits = {"iops-total": round(1000 / delay_ms)} if delay_ms else {"iops-total": 0}
        await self._execute("qom-set", path=f"/objects/{SPEED}", property="limits", value=limits)

    def pause(self) -> None:
        """Stop the process as it is; its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a paused process."""
        self._signal(signal.SIGCONT)

    async def close(self) -> None:
        """Kill it, and wait until it is gone. Idempotent."""
        if self._process is not None:
            await self._process.end()
        if self._record is not None:
            self._record.gone()
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._monitor.disconnect()

    async def wait(self) -> None:
        """Wait until the process has ended."""
        assert self._process is not None
        await self._process.wait()

    def _arguments(self, monitor: int, listener: int) -> Iterator[str]:
        yield from ("--chardev", f"socket,id=monitor,fd={monitor}", "--monitor", "chardev=monitor")
        yield from ("--object", json.dumps({"qom-type": "throttle-group", "id": SPEED}))
        # Like the other disks of a test, the file need not survive the host's power loss.
        file = {"driver": "file", "filename": str(self._file), "discard": "unmap", "cache": {"no-flush": True}}
        image = {"driver": self._format, "file": file, "discard": "unmap", "cache": {"no-flush": True}}
        node = {"driver": "throttle", "node-name": NODE, "throttle-group": SPEED, "file": image, "discard": "unmap"}
        yield from ("--blockdev", json.dumps(node))
        yield from ("--nbd-server", f"addr.type=fd,addr.str={listener}")

    async def _execute(self, command: str, **arguments: Any) -> Any:
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                return await self._monitor.execute(command, arguments)
        except TimeoutError:
            raise StorageDaemonError(f"{command}: no answer for {COMMAND_TIMEOUT_S:.0f} s") from None
        except (QMPError, OSError) as error:
            raise StorageDaemonError(f"{command}: {error}") from None

    def _signal(self, number: signal.Signals) -> None:
        if self.is_running:
            assert self._process is not None
            self._process.signal(number)

    def _last_words(self, error: BaseException) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_path.read_text(errors="replace").splitlines()
            if lines:
                return lines[-1]
        return str(error) or "no answer"
