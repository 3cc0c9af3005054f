"""How an error is told to be one of missing space."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_propolis.operating_system.no_space import is_no_space, reports_no_space


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_place_is_told_by_the_number_and_by_the_text(number: int) -> None:
    error = OSError(number, os.strerror(number))
    assert is_no_space(error)
    assert reports_no_space(f"cp: error writing 'a': {error.strerror}")


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
def test_other_errors_are_none_of_space(number: int) -> None:
    assert not is_no_space(OSError(number, os.strerror(number)))
    assert not reports_no_space(os.strerror(number))


def test_a_program_that_finds_no_space_says_so(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))

    script = (
        "import signal, pathlib; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); pathlib.Path('a').write_text('long')"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 1
    assert reports_no_space(done.stderr)


@pytest.mark.parametrize("said", ["cannot create 'p/a@1': out of space", "cannot create 'p/b': quota exceeded"])
def test_what_zfs_says_of_a_full_pool_is_told(said: str) -> None:
    assert reports_no_space(said)
