"""A path means the same file to an agent as to the test that gives it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from pytest_propolis.errors import ConfigError
from pytest_propolis.storage.host_path import host_path
from pytest_propolis.storage.sources import LocalFile


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("disk.img", "{cwd}/disk.img"),
        (Path("images/disk.img"), "{cwd}/images/disk.img"),
        ("~/disk.img", "{home}/disk.img"),
        (Path("~/disk.img"), "{home}/disk.img"),
        ("sub/~/disk.img", "{cwd}/sub/~/disk.img"),
        ("/abs/disk.img", "/abs/disk.img"),
        ("größe.img", "{cwd}/größe.img"),
        (" a b ", "{cwd}/ a b "),
    ],
)
def test_a_path_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | Path, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    meant = meant.format(cwd=tmp_path, home="/somewhere")
    assert host_path(given, purpose="a disk") == meant
    assert LocalFile(given).path == meant  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("", "the path is empty"),
        (os.fsdecode(b"/\xff.img"), r"the path '/.udcff.img' is not text in UTF-8"),
        ("~nosuchuser/disk.img", "the home directory in ~nosuchuser/disk.img is not known"),
    ],
)
def test_a_path_that_cannot_be_told_is_refused_with_its_purpose(given: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"a disk: {complaint}") as caught:
        host_path(given, purpose="a disk")
    assert caught.value.hint


def test_a_local_file_arrives_at_an_agent_in_another_directory_as_it_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sent = msgspec.json.encode(LocalFile("disk.img"))
    monkeypatch.chdir("/")
    assert msgspec.json.decode(sent, type=LocalFile).path == str(tmp_path / "disk.img")
