"""How a suite is divided into shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_propolis.distribution.durations_file import durations_text, read_durations
from pytest_propolis.distribution.sharding import shards_of
from pytest_propolis.errors import SettingsError

node_ids = st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=60)
seconds = st.floats(0, 1e6)


@st.composite
def suites(draw: st.DrawFn) -> tuple[list[str], dict[str, float]]:
    tests = draw(node_ids)
    known = draw(st.lists(st.sampled_from(tests), unique=True)) if tests else []
    others = draw(st.dictionaries(st.text(max_size=5), seconds, max_size=5))
    return tests, {**others, **{test: draw(seconds) for test in known}}


@given(suite=suites(), count=st.integers(1, 12), order=st.randoms())
def test_each_test_is_in_one_shard_in_whatever_order_the_tests_come(
    suite: tuple[list[str], dict[str, float]], count: int, order: object
) -> None:
    tests, durations = suite
    found = shards_of(tests, count, durations)
    assert found.keys() == set(tests)
    assert set(found.values()) <= set(range(count))
    shuffled = sorted(tests, key=lambda _: order.random())  # type: ignore[attr-defined]
    assert shards_of(shuffled, count, dict(reversed(durations.items()))) == found


@given(tests=node_ids, more=node_ids, count=st.integers(1, 12))
def test_without_durations_a_test_stays_in_its_shard_when_others_come(
    tests: list[str], more: list[str], count: int
) -> None:
    before, after = shards_of(tests, count, {}), shards_of(tests + more, count, {})
    assert {test: after[test] for test in before} == before


@given(lengths=st.lists(st.floats(0.01, 100), min_size=1, max_size=60), count=st.integers(1, 8))
def test_the_longest_shard_is_hardly_longer_than_it_must_be(lengths: list[float], count: int) -> None:
    durations = {f"test_{number}": length for number, length in enumerate(lengths)}
    found = shards_of(durations, count, durations)
    loads = [sum(durations[test] for test in found if found[test] == shard) for shard in range(count)]
    # What placing the longest first promises (Graham 1969).
    assert max(loads) <= sum(lengths) / count + max(lengths) + 1e-6


def test_a_hash_is_the_same_on_every_machine() -> None:
    assert shards_of(["a", "b", "c", "d"], 3, {}) == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    path.write_text(durations_text({"b": 2.0, "a": 1 / 3}))
    assert read_durations(path) == {"a": 0.333, "b": 2.0}
    assert list(json.loads(path.read_text())) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is not an object of JSON"),
        ("{", "is not JSON: "),
        ('{"a": "1"}', "'1' of 'a' is not a number of seconds"),
        ('{"a": -1}', "-1 of 'a' is not"),
        ('{"a": NaN}', "nan of 'a' is not"),
        ('{"a": true}', "True of 'a' is not"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "durations.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=f"durations {path}.*{said}"):
        read_durations(path)
