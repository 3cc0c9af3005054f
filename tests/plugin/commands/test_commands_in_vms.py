"""Commands in VMs, from a shell: ``propolis run``, ``propolis exec``, ``propolis cp``."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
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


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which commands make their temporary directories."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def test_what_fails_of_ours_has_a_status_of_its_own(temporary: Path) -> None:
    assert "there is no guest named 'micra'" in propolis("run", "--guest", "micra", "--", "true", status=125)
    assert list(temporary.glob("propolis-*")) == []


@pytest.fixture
def kept(inner: InnerRun) -> Iterator[str]:
    """The id of a VM that was kept."""
    inner.write(test_it="async def test_it(vm_factory):\n    await vm_factory.start('kept', memory_mib=192)")
    result = inner.run("--propolis-keep=always", "--asyncio-mode=auto")
    result.assert_outcomes(passed=1)
    (found,) = re.findall(r"^  propolis console (\w+)", result.stdout.str(), re.MULTILINE)
    yield found
    propolis("gc", "--kept")


@pytest.mark.slow
def test_a_kept_vm_runs_commands_and_shows_its_prompt_again(kept: str) -> None:
    assert propolis("exec", kept, "--", "echo one; echo two >&2; exit 7", status=7) == "one\ntwo\n"
    assert propolis("exec", kept[:8], "printf", "%s|", "a b", "c") == "a b|c|"
    shown = propolis("console", kept, "-n", "0", typed="echo $((6 * 7))\n").replace("\r", "")
    assert "\n42\n" in shown
    assert propolis("exec", kept, "--", "echo again") == "again\n"


def test_files_get_into_a_kept_vm_and_out_of_it(kept: str, tmp_path: Path) -> None:
    content = os.urandom(5000)
    (tmp_path / "here").write_bytes(content)
    assert propolis("cp", str(tmp_path / "here"), f"{kept}:/tmp/there") == ""
    assert propolis("cp", f"{kept}:/tmp/there", str(tmp_path / "back")) == ""
    assert (tmp_path / "back").read_bytes() == content
    assert "/no/such" in propolis("cp", str(tmp_path / "here"), f"{kept}:/no/such/file", status=125)
    assert "exactly one" in propolis("cp", "here", "there", status=2)


def test_ctrl_c_interrupts_a_command_in_a_kept_vm(kept: str) -> None:
    with subprocess.Popen([*COMMAND, "exec", kept, "echo up; sleep 1000"], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        readable, _, _ = select.select([run.stdout], [], [], TIMEOUT_S)
        assert readable
        assert "uses VM 'kept'" in propolis("exec", kept, "true", status=125)
        run.send_signal(signal.SIGINT)
        assert run.wait(TIMEOUT_S) == 130
    assert propolis("exec", kept, "--", "pidof sleep || echo none") == "none\n"


def test_a_vm_that_does_not_exist_is_an_error_of_ours() -> None:
    assert "there is no VM 'abc'" in propolis("exec", "abc", "true", status=125)


def test_ctrl_c_ends_the_command_and_its_vm(inner: InnerRun, temporary: Path) -> None:
    with subprocess.Popen([*COMMAND, "run", "--", "echo up; sleep 1000"], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        readable, _, _ = select.select([run.stdout], [], [], TIMEOUT_S)
        assert readable
        run.send_signal(signal.SIGINT)
        assert run.wait(TIMEOUT_S) == 130
    assert inner.leavings() == []
    assert list(temporary.glob("propolis-*")) == []
