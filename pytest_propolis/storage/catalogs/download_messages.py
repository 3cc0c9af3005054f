"""Requests to and reports of a process that downloads, one line of JSON each."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["FIRST_PAUSE_S", "DownloadReport", "DownloadRequest"]

FIRST_PAUSE_S: Final = 1.0


class DownloadRequest(msgspec.Struct, frozen=True):
    """A file to download.

    :param urls: where it may be, tried in turn.
    :param destination: where the complete file is put.
    :param downloads: a directory, for what there is of the file until it is complete.
    :param wait_s: how long to try again when no server has it.
    :param first_pause_s: before the first further attempt; each later pause is twice as long.
    """

    urls: tuple[str, ...]
    destination: str
    downloads: str
    wait_s: float
    first_pause_s: float


class DownloadReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of these is set: a message of progress, or the end: the file's SHA-256, or an error.

    :param error: the name of its class.
    """

    progress: str = ""
    sha256: str = ""
    error: str = ""
    message: str = ""
    hint: str | None = None
