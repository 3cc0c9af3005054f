"""Commands in VMs, from a shell: ``propolis run``."""

from __future__ import annotations

import select
import signal
import subprocess
from pathlib import Path

import pytest
from inner_run import InnerRun
from propolis_command import COMMAND, propolis

pytestmark = pytest.mark.usefixtures("inner")  # it fails the test if a command leaves anything behind

TIMEOUT_S = 120


def test_output_errors_and_status_of_a_command_come_out() -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--guest", "micro", "--", "echo out; echo error >&2; exit 7"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "out\n"), done.stderr
    assert done.stderr.endswith("error\n")


def test_a_copied_directory_is_where_the_command_runs(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("content\n")
    assert propolis("run", "--copy", str(tmp_path), "cat", "a file").endswith("content\n")


def test_what_fails_of_ours_has_a_status_of_its_own() -> None:
    assert "there is no guest named 'micra'" in propolis("run", "--guest", "micra", "--", "true", status=125)


def test_ctrl_c_ends_the_command_and_its_vm(inner: InnerRun) -> None:
    with subprocess.Popen([*COMMAND, "run", "--", "echo up; sleep 1000"], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        readable, _, _ = select.select([run.stdout], [], [], TIMEOUT_S)
        assert readable
        run.send_signal(signal.SIGINT)
        assert run.wait(TIMEOUT_S) == 130
    assert inner.leavings() == []
