"""The view of a console on a user's terminal."""

from __future__ import annotations

from pytest_propolis.console.read_eval_loop import program
from pytest_propolis.console.viewer import Viewer

RUN = b"\x1er01234567"
PERSON = b"\x1ei01234567"
READY = b"\x1es01234567\x11"


def test_marks_of_the_shell_protocol_are_left_out() -> None:
    assert Viewer(terminal=False).feed(RUN + b"\x02out\n" + RUN + b"\x030\x04more") == b"out\nmore"


def test_a_mark_that_is_cut_is_left_out_too() -> None:
    viewer = Viewer(terminal=False)
    shown = [viewer.feed(part) for part in (b"a" + RUN[:7], RUN[7:] + b"\x02b")]
    assert b"".join(shown) == b"ab"


def test_lines_get_their_carriage_returns_back_while_the_loop_runs_and_no_longer() -> None:
    viewer = Viewer(terminal=True)
    assert viewer.feed(b"boot\n" + READY + RUN + b"\x02a\nb\r\n") == b"boot\na\r\nb\r\n"
    assert viewer.feed(RUN + b"\x030\x04" + PERSON + b"\x02c\n") == b"c\n"


def test_in_a_pipe_lines_stay_as_they_are() -> None:
    assert Viewer(terminal=False).feed(READY + b"a\n") == b"a\n"


def test_the_loop_that_was_typed_is_left_out_of_the_history() -> None:
    typed = program("s01234567").replace("\n", "\r\n> ").encode()
    assert Viewer(terminal=False).feed(b"welcome\n~ # " + typed + b"\r\n" + READY + b"out\n") == b"welcome\nout\n"
