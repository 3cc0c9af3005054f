"""A temporary directory for the logs of a command that drives a VM."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...errors import PropolisError

__all__ = ["log_directory"]


@contextlib.contextmanager
def log_directory(command: str) -> Iterator[Path]:
    """Make a directory. After an error, which names a log there, it stays with what it has."""
    directory = Path(tempfile.mkdtemp(prefix=f"propolis-{command}-"))
    try:
        yield directory
    except PropolisError:
        with contextlib.suppress(OSError):
            directory.rmdir()  # fails where there is a log
        raise
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)
