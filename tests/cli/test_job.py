"""Jobs of several programs."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from propolis_command import COMMAND, propolis

PROGRAM = shlex.join(COMMAND)


@pytest.fixture(autouse=True)
def own_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short one: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield


def job(path: Path, **commands: str) -> Path:
    file = path / "job.toml"
    file.write_text("".join(f"[[node]]\nname = '{name}'\ncommand = '''{text}'''\n" for name, text in commands.items()))
    return file


def test_programs_of_a_job_meet_and_their_output_is_in_one_log(tmp_path: Path) -> None:
    file = job(
        tmp_path,
        server=f"{PROGRAM} kv put port 80; {PROGRAM} barrier ready 2 >/dev/null; echo served",
        client=f"{PROGRAM} barrier ready 2 >/dev/null; {PROGRAM} kv get port",
    )
    lines = [line.split(maxsplit=1) for line in propolis("job", str(file)).splitlines()]
    assert [float(time) for time, _ in lines] == sorted(float(time) for time, _ in lines)
    assert {"server: served", "client: 80"} <= {text for _, text in lines}


def test_a_program_that_fails_ends_the_job_with_its_status(tmp_path: Path) -> None:
    output = propolis("job", str(job(tmp_path, waits="sleep 1000", fails="echo the reason; exit 7")), status=7)
    assert "fails: the reason" in output
    assert "waits: propolis: node 'fails' has failed: /bin/sh ended with status 7" in output


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "missing required field `node`"),
        ("[[node]]\nname = 'a'", "missing required field `command`"),
        ("[[node]]\nname = 'a'\ncommand = 'b'\ncolour = 1", "unknown field `colour`"),
        ("[[node]]\nname = 'a'\ncommand = 'b'\n[[node]]\nname = 'a'\ncommand = 'c'", "has two nodes 'a'"),
    ],
)
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "job.toml").write_text(text)
    assert reason in propolis("job", str(tmp_path / "job.toml"), status=1)
