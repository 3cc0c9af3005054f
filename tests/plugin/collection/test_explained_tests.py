"""`propolis doctor --tests`, which reports before a run which tests will be skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inner_run import InnerRun
from propolis_command import propolis

TESTS = """
import pytest

@pytest.mark.multi_node(3)
async def test_three(remote_hosts): ...

@pytest.mark.requires(labels=["fast"], memory_mib=128)
async def test_fast(test_vm): ...

@pytest.mark.requires(memory_mib=1 << 28)
async def test_large(vm_factory): ...

@pytest.mark.skipif(True, reason="broken upstream")
async def test_broken(test_vm): ...

@pytest.mark.parametrize("number", range(5))
async def test_plain(propolis, number): ...

def test_other(): ...
"""

INVENTORY = """
[hosts.plain]
kind = "local"

[hosts.fast]
kind = "local"
labels = ["fast"]
"""


def explained(*arguments: str) -> dict[str, dict[str, object]]:
    told = propolis("doctor", "--json", *arguments)
    tests = json.loads(told[told.index("{") :])["tests"]
    return {test["test"].partition("::")[2]: test for test in tests}


def test_what_is_skipped_in_a_run_is_explained_before_it_with_the_same_words(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    (inner.pytester.path / "hosts.toml").write_text(INVENTORY)
    for hosts in ("local:1", "hosts.toml"):
        tests = explained("--tests", ".", "--propolis-hosts", hosts)
        result = inner.run("-rs", "--propolis-hosts", hosts)
        skipped = [test for test in tests.values() if test["skipped"]]
        assert len(tests) == 10
        assert result.parseoutcomes()["skipped"] == len(skipped)
        for test in skipped:
            assert str(test["reason"]).removeprefix("its marker says: ") in result.stdout.str()
            assert str(test["remedy"]) in result.stdout.str()


def test_hosts_that_meet_what_a_test_needs_are_named(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    (inner.pytester.path / "hosts.toml").write_text(INVENTORY)
    tests = explained("--tests", "test_it.py", "--propolis-hosts", "hosts.toml")
    assert tests["test_fast"]["hosts"] == ["fast"]
    assert tests["test_fast"]["needs"] == "1 host, the guest micro, 128 MiB, 2 CPUs, the label fast"
    assert tests["test_plain[0]"]["hosts"] == ["plain", "fast"]
    assert tests["test_other"]["hosts"] == []


def test_the_table_has_reasons_remedies_and_the_sum(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    told = propolis("doctor", "--tests", ".")
    assert "skipped: it needs 3 hosts, and the run has 1\n  needs  3 hosts, the guest micro, 512 MiB" in told
    assert "\n  ->     --propolis-hosts local:3, or the ini key propolis_hosts, makes 3 of this machine\n" in told
    assert "\nskipped: its marker says: broken upstream\n" in told
    assert "\n  ... and 2 more\n" in told
    assert told.endswith("\n6 tests will run, and 4 will be skipped.\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_this", "nothing_like_this"),
        ("import pytest\n@pytest.mark.multi_node(0)\nasync def test(): ...", "0"),
    ],
)
def test_tests_that_cannot_be_collected_end_the_command_with_what_pytest_says(
    inner: InnerRun, text: str, said: str
) -> None:
    (inner.pytester.path / "test_it.py").write_text(text)
    told = propolis("doctor", "--tests", ".", status=1)
    assert "propolis: pytest cannot collect the tests (exit status 2): " in told
    assert said in told


def test_a_guest_that_is_not_built_is_explained_as_the_run_does(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROPOLIS_ARTIFACT_DIR", str(inner.pytester.mkdir("empty")))
    inner.write(
        test_it="import pytest\n@pytest.mark.guest_os('debian', 'micro')\nasync def test_it(vm_factory):\n    pass\n"
    )
    tests = explained("--tests", ".")
    assert tests["test_it[debian]"]["reason"] == "the guest debian is not built"
    assert "propolis setup debian" in str(tests["test_it[debian]"]["remedy"])
    assert not tests["test_it[micro]"]["skipped"]
    inner.run().assert_outcomes(passed=1, skipped=1)


def test_nothing_is_started_or_made(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    explained("--tests", ".", "--propolis-hosts", "local:3")
    assert not Path(inner.runtime / "propolis").exists()
