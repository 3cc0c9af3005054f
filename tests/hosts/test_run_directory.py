"""Run directories: private, short, and never in a shared place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pytest_propolis.errors import HostError
from pytest_propolis.hosts.run_directory import agent_directory, base_directory, make_private_directory, run_token


def test_the_users_runtime_directory_comes_first(tmp_path: Path) -> None:
    assert base_directory({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "propolis"


@pytest.mark.parametrize("runtime", [None, "", "/nowhere/at/all", "."], ids=["unset", "empty", "missing", "relative"])
def test_without_one_it_is_a_place_of_the_users_own(runtime: str | None) -> None:
    environment = {} if runtime is None else {"XDG_RUNTIME_DIR": runtime}
    expected = Path("/run/propolis") if os.geteuid() == 0 else Path.home() / ".cache/propolis/run"
    assert base_directory(environment) == expected


def test_a_run_of_one_has_a_new_token_each_time() -> None:
    assert run_token(None) != run_token(None)


def test_workers_that_share_an_id_share_a_token_and_no_others_do() -> None:
    assert run_token("one") == run_token("one") != run_token("two")
    assert "one" not in run_token("one")


def test_agents_of_one_run_have_places_of_their_own_that_fit_a_socket() -> None:
    one, two = agent_directory("0" * 16), agent_directory("0" * 16)
    assert one != two
    assert len(one.name) <= 32


def test_what_is_made_is_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private_directory(tmp_path / "one" / "two")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "one" / "two").stat().st_mode) == 0o700
    make_private_directory(tmp_path / "one" / "two")


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o755)
    with pytest.raises(HostError, match="is not a directory of this user alone") as caught:
        make_private_directory(place)
    assert caught.value.hint is not None


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(HostError, match="is not a directory of this user alone"):
        make_private_directory(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    place.mkdir(mode=0o700)
    os.chown(place, 54321, 54321)
    with pytest.raises(HostError, match="is not a directory of this user alone"):
        make_private_directory(place)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=f"the directory {tmp_path}/file/x cannot be made: Not a directory"):
        make_private_directory(tmp_path / "file" / "x")
