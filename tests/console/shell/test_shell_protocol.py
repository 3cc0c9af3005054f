"""The framing of commands and results, without I/O."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_pty import chunked

from pytest_propolis.console.shell_protocol import (
    INTERRUPT,
    LINE_BYTES,
    WINDOW_BYTES,
    Acknowledged,
    Began,
    Ended,
    FrameParser,
    Output,
    Ready,
    Signal,
    encode,
    new_nonce,
    new_session,
)

SESSION, NONCE = "s0011223f", "r01234567"
WORDS = {SESSION, NONCE}

MARKS: dict[bytes, Signal] = {
    b"\x1er01234567\x02": Began(NONCE),
    b"\x1er01234567\x030\x04": Ended(NONCE, 0),
    b"\x1er01234567\x03255\x04": Ended(NONCE, 255),
    b"\x1er01234567\x0612\x04": Acknowledged(12),
    b"\x1es0011223f\x05137\x04": Ended(None, 137),
    b"\x1es0011223f\x11": Ready(),
}
OTHER = [b"\x1e", b"\x1er0123", b"\x1erffffffff\x02", b"\x1es0011223f\x05", b"\x04", b"0", b"text\n"]


def parsed(chunks: list[bytes]) -> list[Signal]:
    """The signals, with neighbouring output joined."""
    parser = FrameParser(WORDS)
    signals: list[Signal] = []
    for chunk in chunks:
        for signal in parser.feed(chunk):
            match signal, signals[-1:]:
                case Output(data), [Output(before)]:
                    signals[-1] = Output(before + data)
                case _:
                    signals.append(signal)
    return signals


def decoded(lines: list[bytes]) -> tuple[str, str]:
    """Decode the lines of a command as the loop in the guest does: nonce and command."""
    nonce, count, first = lines[0].split(b" ", 2)
    assert int(count) == len(lines) - 1
    command = first
    for line in lines[1:]:
        kind, text = line[:1].lower(), line[1:]
        if kind == b"o":
            text = re.sub(rb"\\0([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)
        command += (b"\n" if kind == b"n" else b"") + text
    return nonce.decode(), command.decode(errors="surrogateescape")


commands = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\n\x1c '\\"))


@given(commands | st.builds(lambda text, times: text * times, commands, st.integers(1, 400)))
def test_a_command_survives_its_framing(command: str) -> None:
    numbered = list(encode(command, NONCE))
    chunks = [chunk.data for chunk in numbered]
    lines = b"".join(chunks).split(b"\n")
    assert lines.pop() == b""
    assert decoded(lines) == (NONCE, command)
    assert all(len(chunk) <= WINDOW_BYTES + LINE_BYTES + 32 for chunk in chunks)
    assert INTERRUPT not in b"".join(chunks)
    # All chunks but the last end with a line that asks for an acknowledgement, and no other line does.
    asking = [line[:1] in (b"N", b"C", b"O") for line in lines[1:]]
    assert sum(asking) == len(chunks) - 1
    after = [len(asking) - index - 1 for index, asks in enumerate(asking) if asks]
    assert [chunk.remaining for chunk in numbered] == [*after, 0]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*MARKS, *OTHER]) | st.binary(max_size=4), max_size=10), st.data())
def test_any_cutting_of_what_the_console_shows_gives_the_same_signals(pieces: list[bytes], data: st.DataObject) -> None:
    # A mark at the very end makes the parser let go of what it holds back.
    stream = b"".join([*pieces, b"\x1es0011223f\x11"])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    assert parsed(list(chunked(stream, cuts))) == parsed([stream])
    assert parsed([stream[i : i + 1] for i in range(len(stream))]) == parsed([stream])


@given(
    st.lists(st.sampled_from(list(MARKS)) | st.binary(min_size=1, max_size=5).filter(lambda data: b"\x1e" not in data))
)
def test_marks_and_output_are_told_apart(pieces: list[bytes]) -> None:
    expected: list[Signal] = []
    for piece in pieces:
        match MARKS.get(piece), expected[-1:]:
            case None, [Output(before)]:
                expected[-1] = Output(before + piece)
            case None, _:
                expected.append(Output(piece))
            case mark, _:
                expected.append(mark)
    assert parsed([b"".join(pieces)]) == expected


def test_marks_of_others_are_output() -> None:
    imitation = b"\x1erffffffff\x030\x04\x1esffffffff\x050\x04"
    assert parsed([imitation, b"\n"]) == [Output(imitation + b"\n")]


def test_what_may_become_a_mark_is_held_back_and_nothing_more() -> None:
    assert parsed([b"text\x1er01234"]) == [Output(b"text")]
    assert parsed([b"text\x1er01234", b"z", b"\x1e"]) == [Output(b"text\x1er01234z")]


KERNEL = b"[    1.5] usb 1-1: new device\r\n"


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: repr(mark[14:]))
@pytest.mark.parametrize(
    "message", [KERNEL, KERNEL * 3, b"abc\r\n", b"\n"], ids=["one", "three", "hex digits", "empty"]
)
def test_a_kernel_message_inside_a_mark_comes_before_its_signal(mark: bytes, message: bytes) -> None:
    for cut in range(1, len(mark)):
        interrupted = mark[:cut] + message + mark[cut:]
        assert parsed([b"a" + interrupted + b"b"]) == [Output(b"a" + message), MARKS[mark], Output(b"b")], cut
        assert parsed([b"a", *(interrupted[i : i + 1] for i in range(len(interrupted)))]) == [
            Output(b"a" + message),
            MARKS[mark],
        ], cut


def test_a_mark_may_be_interrupted_twice() -> None:
    mark = b"\x1er01234567\x031\x04"
    for cut in range(1, len(mark) - 1):
        for second in range(cut + 1, len(mark)):
            interrupted = mark[:cut] + KERNEL + mark[cut:second] + KERNEL * 2 + mark[second:]
            assert parsed([interrupted]) == [Output(KERNEL * 3), Ended(NONCE, 1)], (cut, second)


def test_output_that_only_begins_like_a_mark_is_not_held_back_for_ever() -> None:
    output = b"\x1er01234567" + b"line\n" * 20_000
    assert parsed([output]) == [Output(output)]


def test_without_words_nothing_is_held_back() -> None:
    assert list(FrameParser().feed(b"text\x1e")) == [Output(b"text\x1e")]


def test_what_is_held_back_at_a_restart_is_output_and_begins_no_mark() -> None:
    parser = FrameParser(WORDS)
    assert list(parser.feed(b"text\x1er0123")) == [Output(b"text")]
    assert list(parser.restart()) == [Output(b"\x1er0123")]
    assert list(parser.feed(b"4567\x031\x04\x1er")) == [Output(b"4567\x031\x04\x1er")]


def test_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        list(encode("echo \0", NONCE))


def test_words_are_new_each_time_and_of_their_kind() -> None:
    assert re.fullmatch("s[0-9A-Za-z]{8}", new_session())
    assert re.fullmatch("r[0-9A-Za-z]{8}", new_nonce())
    assert re.fullmatch("i[0-9A-Za-z]{8}", new_nonce(interactive=True))
    assert new_nonce() != new_nonce()
