"""Terminal output as plain text, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_propolis.console.escapes import TextFilter

PIECES = [
    b"word",
    b"\r\n",
    b"\t",
    b"\x1b[31;1m",
    b"\x1b[?25l",
    b"\x1b[6C",
    b"\x1b[C",
    b"\x1b[99999999C",
    b"\x1b]0;a title\x07",
    b"\x1b]0;a title\x1b\\",
    b"\x1bPq#0\x1b\\",
    b"\x1b(B",
    b"\x1b7",
    b"\x1b=",
    b"\x1b",
    b"\x1b[",
    b"\x1b]",
    b"\x07\x08\x7f\x00",
    "häß€𝄞".encode(),
    b"\xff\xc3",
]

streams = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=12).map(b"".join)


def filtered(*chunks: bytes) -> str:
    text_filter = TextFilter()
    return "".join(map(text_filter.feed, chunks))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain\r\n", "plain\n"),
        (b"a\x1b[31mred\x1b[0mb", "aredb"),
        (b"a\x1b[3Cb\x1b[Cc", "a   b c"),
        (b"a\x1b]0;a title\x07b", "ab"),
        (b"a\x1b]0;a title\x1b\\b", "ab"),
        (b"a\x1bPdevice\x1b\\b", "ab"),
        (b"a\x1b(Bb\x1b7c\x1b=d", "abcd"),
        (b"a\x1b[2J\x1b[01;01Hb", "ab"),
        (b"a\x07\x08\x00b\tc\x7f", "ab\tc"),
        ("häß€".encode(), "häß€"),
        (b"a\x1b\x07[2Jb", "a[2Jb"),
        (b"a\x1b\x1b[0m[31mb", "a[31mb"),
        ("a\u009b31mb\u0085c".encode(), "a31mbc"),
        (b"a\xffb", "a\N{REPLACEMENT CHARACTER}b"),
    ],
)
def test_words_stay_and_sequences_go(raw: bytes, text: str) -> None:
    assert filtered(raw) == text


@pytest.mark.parametrize("raw", [b"".join(PIECES), b"end" + b"".join(reversed(PIECES))])
def test_a_cut_at_any_byte_changes_nothing(raw: bytes) -> None:
    for cut in range(len(raw) + 1):
        assert filtered(raw[:cut], raw[cut:]) == filtered(raw)


@given(streams, st.data())
def test_any_cutting_into_chunks_changes_nothing(raw: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    chunks = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert filtered(*chunks) == filtered(raw)
    assert filtered(*(raw[i : i + 1] for i in range(len(raw)))) == filtered(raw)


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"])))
def test_printable_text_comes_through_as_it_is(text: str) -> None:
    assert filtered(text.encode()) == text


def test_a_sequence_that_never_ends_does_not_swallow_the_console() -> None:
    assert "login:" in filtered(b"\x1b]0;", b"x" * 5000, b"login:")


def test_what_is_finished_shows_what_was_kept_and_begins_anew() -> None:
    text_filter = TextFilter()
    assert text_filter.feed(b"a\x1b]0;title") == "a"
    assert text_filter.finish() == "]0;title"
    assert text_filter.finish() == ""
    assert text_filter.feed(b"b\xc3") == "b"
    assert text_filter.finish() == "\N{REPLACEMENT CHARACTER}"
    assert text_filter.feed(b"\xa4c") == "\N{REPLACEMENT CHARACTER}c"


def test_a_move_to_the_right_has_a_bound() -> None:
    assert len(filtered(b"\x1b[99999C")) <= 10_000
    assert filtered(b"a\x1b[" + b"9" * 4090 + b"Cb") == "ab"
    assert filtered(b"\x1b[" + b"9" * 6000 + b"C").strip("9") in ("", "[C", "C")


@given(st.binary())
def test_nothing_that_a_terminal_acts_on_gets_through(raw: bytes) -> None:
    live = {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}
    assert not live & set(filtered(raw))
