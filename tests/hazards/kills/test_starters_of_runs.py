"""What a test starts ends with the test's own process, even one that is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from live_run import PHASE_TIMEOUT_S, LiveRun

STARTER = """
import os, signal
from live_run import live_run

with live_run("booting") as run:
    print(run.place, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_ends_with_the_process_that_started_it() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", STARTER], env=environment, stdout=subprocess.PIPE) as starter:
        output, _ = starter.communicate(timeout=2 * PHASE_TIMEOUT_S)
    run = LiveRun(Path(os.fsdecode(output).strip()), starter)
    try:
        run.wait_until_clean()
    finally:
        run.end_all()
        shutil.rmtree(run.place)
