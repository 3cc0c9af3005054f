"""Shards of a suite, as jobs of a CI matrix run them."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from inner_run import InnerRun
from propolis_command import propolis

SUITE = """
import pytest

@pytest.mark.parametrize("number", range(12))
def test_it(number): pass

def test_other(): pass
"""


def collected(inner: InnerRun, *arguments: str) -> list[str]:
    result = inner.run("--collect-only", "-q", *arguments)
    return [line for line in result.outlines if line.startswith("test_it.py::")]


@pytest.mark.parametrize("durations", [None, {"test_it.py::test_it[3]": 9.0, "test_it.py::test_other": 8.0, "gone": 1}])
def test_the_shards_together_are_the_suite(inner: InnerRun, durations: dict[str, float] | None) -> None:
    inner.write(test_it=SUITE)
    given = []
    if durations is not None:
        (inner.pytester.path / "durations.json").write_text(json.dumps(durations))
        given = ["--propolis-durations", "durations.json"]
    shards = [collected(inner, *given, "--propolis-shard", f"{number}/2") for number in (1, 2)]
    assert sorted(itertools.chain(*shards)) == sorted(collected(inner))
    if durations is not None:
        (where,) = [shard for shard in shards if "test_it.py::test_it[3]" in shard]
        assert "test_it.py::test_other" not in where


def test_workers_run_the_tests_of_the_shard_alone(inner: InnerRun) -> None:
    inner.write(test_it=SUITE)
    tests = collected(inner, "--propolis-shard", "2/3")
    result = inner.run("-n", "2", "--propolis-shard", "2/3", "-v")
    result.assert_outcomes(passed=len(tests))
    assert sorted(set(re.findall(r"test_it\.py::\S+", result.stdout.str()))) == sorted(tests)


@pytest.mark.parametrize("arguments", [(), ("-n", "2")])
def test_an_empty_shard_is_no_failure(inner: InnerRun, arguments: tuple[str, ...]) -> None:
    inner.write(test_it="def test_it(): pass\n")
    results = [inner.run("--propolis-shard", f"{number}/2", *arguments) for number in (1, 2)]
    assert [result.ret for result in results] == [0] * 2
    assert sum(result.parseoutcomes().get("passed", 0) for result in results) == 1


@pytest.mark.parametrize("arguments", [(), ("-n", "2", "--propolis-hosts", "local:2")])
def test_durations_are_written_and_divide_the_next_run(inner: InnerRun, arguments: tuple[str, ...]) -> None:
    inner.write(
        test_it="import pytest, time\n"
        "def test_long():\n    time.sleep(0.3)\n"
        "def test_short():\n    pass\n"
        "@pytest.mark.skip\ndef test_skipped():\n    pass\n"
    )
    inner.run("--propolis-write-durations", "written.json", *arguments).assert_outcomes(passed=2, skipped=1)
    written = json.loads((inner.pytester.path / "written.json").read_text())
    assert written.keys() == {"test_it.py::test_long", "test_it.py::test_short"}
    assert written["test_it.py::test_long"] >= 0.3 > written["test_it.py::test_short"]


def test_files_of_durations_are_merged(inner: InnerRun) -> None:
    directory = inner.pytester.path
    for name, content in {"old": {"a": 1, "b": 1}, "one": {"a": 2}, "two": {"c": 3}}.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    files = [str(directory / f"{name}.json") for name in ("old", "one", "two")]
    assert json.loads(propolis("durations", *files)) == {"a": 2, "b": 1, "c": 3}
    propolis("durations", *files, "-o", files[0])
    assert json.loads(Path(files[0]).read_text()) == {"a": 2, "b": 1, "c": 3}
    assert "durations /nowhere cannot be read" in propolis("durations", "/nowhere", status=1)


@pytest.mark.parametrize("arguments", [("--propolis-shard", "1/2"), ("-n", "2", "--propolis-hosts", "local:2")])
def test_a_file_of_durations_that_is_not_there_ends_the_run(inner: InnerRun, arguments: tuple[str, ...]) -> None:
    inner.write(test_it=SUITE)
    result = inner.run("--propolis-durations", "nowhere.json", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*durations */nowhere.json cannot be read: No such file or directory*"])
