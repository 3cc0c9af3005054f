"""What marks the meeting of a run's processes is removed when its agent is gone, if it is this user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_propolis.ledger.rendezvous import SUFFIX, remove_abandoned

STRANGER = 54321


def test_that_of_a_gone_agent_is_removed(tmp_path: Path) -> None:
    path = tmp_path / f"run{SUFFIX}"
    path.write_text(f"{tmp_path}/gone.sock\n")
    assert remove_abandoned(tmp_path) == [path]
    assert not path.exists()


def test_a_link_is_left(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    (tmp_path / f"run{SUFFIX}").symlink_to(tmp_path / "precious")
    assert remove_abandoned(tmp_path) == []
    assert (tmp_path / f"run{SUFFIX}").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_that_of_another_user_is_left(tmp_path: Path) -> None:
    path = tmp_path / f"run{SUFFIX}"
    path.write_text("")
    os.chown(path, STRANGER, STRANGER)
    assert remove_abandoned(tmp_path) == []
    assert path.exists()
