"""The input that a console must resend after a migration."""

from __future__ import annotations

from pytest_propolis.console.following import KEPT_BYTES, Sent


def test_nothing_is_left_of_what_was_taken() -> None:
    sent = Sent()
    sent.append(b"abc")
    assert sent.beyond(3) == (b"", 0)


def test_what_was_not_taken_is_kept_in_its_order() -> None:
    sent = Sent()
    for piece in (b"abc", b"def", b"ghi"):
        sent.append(piece)
    assert sent.beyond(4) == (b"efghi", 0)
    assert sent.beyond(0) == (b"abcdefghi", 0)


def test_what_nobody_can_have_missed_is_forgotten_and_counted() -> None:
    sent = Sent()
    sent.append(b"first")
    sent.append(bytes(KEPT_BYTES))
    sent.append(b"last")
    rest, forgotten = sent.beyond(2)
    assert forgotten == 3
    assert rest == bytes(KEPT_BYTES) + b"last"
    assert sent.beyond(5 + KEPT_BYTES) == (b"last", 0)
