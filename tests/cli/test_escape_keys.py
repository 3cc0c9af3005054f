"""The keys that leave a console."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_propolis.cli.console import EscapeKeys


@pytest.mark.parametrize(
    ("typed", "passed", "left"),
    [
        (b"ls -l\r", b"ls -l\r", False),
        (b"ab\x1dcd", b"ab", True),
        (b"~.", b"", True),
        (b"ls\r~.rest", b"ls\r", True),
        (b"ls\n~.", b"ls\n", True),
        (b"a~.", b"a~.", False),
        (b"~~.", b"~.", False),
        (b"~a", b"~a", False),
        (b"~\r~.", b"~\r", True),
        (b"~\x1d", b"", True),
        (b"\x03\x04", b"\x03\x04", False),
    ],
)
def test_keys_pass_until_the_person_leaves(typed: bytes, passed: bytes, left: bool) -> None:
    keys = EscapeKeys()
    assert (keys.feed(typed), keys.left) == (passed, left)


@given(st.lists(st.sampled_from([b"~", b".", b"\r", b"a", b"\n"]), max_size=12))
def test_it_does_not_matter_how_keys_are_cut_into_chunks(typed: list[bytes]) -> None:
    whole, pieces = EscapeKeys(), EscapeKeys()
    passed = b""
    for key in typed:
        if not pieces.left:
            passed += pieces.feed(key)
    assert (whole.feed(b"".join(typed)), whole.left) == (passed, pieces.left)
