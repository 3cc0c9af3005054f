"""Fixtures for tests of hazards."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dead_agents import STRANGER, Unprivileged, can_give_files_away, fork, join

from pytest_propolis.ledger.identity import find_tagged


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of run directories; processes that were started in the test end with it."""
    token = secrets.token_hex(16)
    monkeypatch.setenv("PROPOLIS_TEST_TOKEN", token)
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    yield base
    for process in find_tagged(token):
        process.kill()


@pytest.fixture
def unprivileged() -> Iterator[Unprivileged]:
    """Runs a check as a user without privileges, in a directory of its own: another user, where it can become one."""
    with tempfile.TemporaryDirectory() as name:
        can_change = can_give_files_away(Path(name))

        def run(check: Callable[[Path], None]) -> None:
            def drop_and_check() -> None:
                if can_change:
                    os.chown(name, STRANGER, STRANGER)
                    os.setgroups([])
                    os.setresgid(STRANGER, STRANGER, STRANGER)
                    os.setresuid(STRANGER, STRANGER, STRANGER)
                check(Path(name))

            assert join(fork(drop_and_check)) == 0

        yield run
