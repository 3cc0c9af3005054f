"""Runs are found wherever their XDG_RUNTIME_DIR was."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from pytest_propolis.hosts import known_directories
from pytest_propolis.hosts.known_directories import known_base_directories, note_base_directory


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the base directory for runs of a shell, with notes of this test only."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "propolis"


def place(tmp_path: Path, name: str) -> Path:
    directory = tmp_path / name
    directory.mkdir(mode=0o700)
    note_base_directory(directory)
    return directory


def test_without_notes_there_is_the_place_of_this_shell_alone(here: Path) -> None:
    assert known_base_directories() == [here]


def test_noted_places_come_after_that_of_this_shell_each_once(here: Path, tmp_path: Path) -> None:
    here.mkdir(mode=0o700)
    note_base_directory(here)
    other = place(tmp_path, "other")
    note_base_directory(other)
    assert known_base_directories() == [here, other]


def test_a_place_whose_name_is_not_text_is_found(here: Path, tmp_path: Path) -> None:
    other = place(tmp_path, os.fsdecode(b"\xff"))
    assert known_base_directories() == [here, other]


def test_places_that_are_gone_or_open_to_others_are_passed_over(here: Path, tmp_path: Path) -> None:
    place(tmp_path, "gone").rmdir()
    place(tmp_path, "open").chmod(0o755)
    assert known_base_directories() == [here]


def test_notes_that_others_could_have_written_are_passed_over(here: Path, tmp_path: Path) -> None:
    place(tmp_path, "other")
    (tmp_path / "state" / "propolis" / "run-directories").chmod(0o777)
    assert known_base_directories() == [here]


def test_a_new_note_replaces_those_of_places_that_are_gone(tmp_path: Path) -> None:
    place(tmp_path, "gone").rmdir()
    place(tmp_path, "new")
    assert len(list((tmp_path / "state" / "propolis" / "run-directories").iterdir())) == 1


def test_a_place_is_not_noted_where_nothing_can_be_written(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    place(tmp_path, "other")
    assert known_base_directories() == [here]


@pytest.mark.parametrize("state", ["", "relative"])
def test_without_a_state_directory_notes_are_in_the_home_directory(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setenv("HOME", str(tmp_path))
    other = place(tmp_path, "other")
    assert known_base_directories() == [here, other]
    assert platformdirs.user_state_path("propolis") / "run-directories" == known_directories._notes()
