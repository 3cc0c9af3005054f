"""The audit finds the sockets of a run, and does not take another user's for one."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from pytest_propolis.ledger.audit import audit


def test_an_abstract_socket_with_the_runs_word_is_no_leak(tmp_path: Path) -> None:
    """Any user can bind one: the word is in command lines."""
    word = secrets.token_hex(8)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"\0propolis/{word}-other")
        assert audit(tmp_path, word, block_devices=tmp_path) == []


def test_a_socket_in_the_directory_of_a_run_is_a_leak(tmp_path: Path) -> None:
    word = secrets.token_hex(8)
    place = tmp_path / f"{word}-1"
    place.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place / "vnc.sock"))
        assert f"socket {place}/vnc.sock" in map(str, audit(tmp_path, word, block_devices=tmp_path))
