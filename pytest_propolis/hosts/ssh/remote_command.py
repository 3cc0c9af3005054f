"""A shell command on a host that does not outlive its client.

Its text is sent to the host's own Python, as that of the loader, so it imports only the standard library. A signal that
is asked for over SSH would not do: sshd refuses to send it in sessions of root.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys

LINE_PREFIX = "propolis1 "


def main() -> int:
    """Run the command that standard input names; kill it when standard input ends before. Return its status."""
    command = json.loads(sys.stdin.buffer.readline())["command"]
    for stream in (sys.stdout, sys.stderr):  # what the login shell printed comes before this line
        stream.write(f"{LINE_PREFIX}\n")
        stream.flush()
    process = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, start_new_session=True)
    ended = os.pidfd_open(process.pid)
    readable, _, _ = select.select([0, ended], [], [])
    if ended not in readable:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
