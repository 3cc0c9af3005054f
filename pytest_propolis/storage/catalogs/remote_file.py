"""Files on HTTP servers, each downloaded by a separate process."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...errors import ArtifactMissing, PropolisError, ResourceExhausted
from ...operating_system.python_processes import python_command
from ..files import private_directory
from ..programs import run_program
from ..progress import Progress
from .download_messages import FIRST_PAUSE_S, DownloadReport, DownloadRequest

__all__ = ["RemoteFile"]

_ERRORS: dict[str, type[PropolisError]] = {kind.__name__: kind for kind in (ArtifactMissing, ResourceExhausted)}


class RemoteFile(msgspec.Struct, frozen=True, tag="remote-file"):
    """A file on HTTP servers.

    :param urls: where it may be, tried in turn.
    :param wait_s: how long to try again when no server has it: a build service publishes a file when it is built.
    """

    urls: tuple[str, ...]
    wait_s: float = 0.0

    def __str__(self) -> str:
        return " or ".join(self.urls)

    async def fetch(self, destination: Path, progress: Progress, *, downloads: Path) -> str:
        """Download the file; return its SHA-256. An interrupted earlier download is resumed.

        Another process does it: a test may have put doubles of HTTP, sockets and clocks into this one.

        :raises ArtifactMissing: when no server gives it, with what each one answered.
        :raises ResourceExhausted: when there is no space left.
        """
        downloads = private_directory(downloads)
        request = DownloadRequest(self.urls, str(destination), str(downloads), self.wait_s, FIRST_PAUSE_S)
        last = DownloadReport()

        def receive(line: str) -> None:
            nonlocal last
            last = msgspec.json.decode(line, type=DownloadReport)
            if last.progress:
                progress(last.progress)

        command = python_command("pytest_propolis.storage.catalogs.download", msgspec.json.encode(request).decode())
        finished = await run_program(command, traced=False, ends_with_parent=True, on_line=receive)
        if last.error:
            raise _ERRORS[last.error](last.message, hint=last.hint)
        if not last.sha256:
            raise ArtifactMissing(
                f"the process that downloads {self} ended with status {finished.status}:\n{finished.last_lines()}",
                hint="try again; if it was killed, look whether the machine is short of memory",
            )
        return last.sha256
