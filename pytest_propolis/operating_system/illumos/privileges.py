"""Signal processes that have more privileges than this one, with the user's rights profile."""

from __future__ import annotations

import shutil
import signal
import subprocess
from typing import Final

__all__ = ["PFEXEC", "privileged_kill"]

PFEXEC: Final = "pfexec"
_TIMEOUT_S: Final = 10.0


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
