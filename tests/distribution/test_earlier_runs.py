"""What earlier runs have measured: durations of tests, and speeds of machines."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from pytest_propolis.distribution.earlier_runs import DURATIONS, SPEEDS, EarlierRuns, machine_of
from pytest_propolis.hosts.host import HostSpec

TRUE_SPEEDS = {"fast": 1.4, "old": 0.7}


@pytest.fixture
def config(pytester: pytest.Pytester) -> pytest.Config:
    return configured(pytester)


def configured(pytester: pytest.Pytester, *arguments: str) -> pytest.Config:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    return pytester.parseconfigure(*arguments)


def cached(config: pytest.Config, key: str) -> dict[str, float]:
    assert config.cache is not None
    found = config.cache.get(key, {})
    assert isinstance(found, dict)
    return found


def run(config: pytest.Config, tests: dict[str, float], chance: Random, *, factor: float = 1.0) -> None:
    """Run tests somewhere.

    :param tests: their durations on a machine of speed 1.0, in s.
    :param factor: how much slower everything is on this day.
    """
    earlier = EarlierRuns(config, {})
    for test, seconds in tests.items():
        machine = chance.choice(list(TRUE_SPEEDS))
        earlier.record(test, factor * chance.uniform(0.9, 1.1) * seconds / TRUE_SPEEDS[machine], [machine])
    earlier.save()


def test_the_speeds_of_machines_are_learnt_and_durations_are_those_on_one_of_speed_1(config: pytest.Config) -> None:
    chance = Random(7)
    tests = {f"test_{number}": chance.uniform(0.5, 20) for number in range(80)}
    for factor in (1.0, 1.0, 3.0, 0.3, 1.0, 1.0, 2.0, 1.0):
        run(config, tests, chance, factor=factor)
    earlier = EarlierRuns(config, {})
    assert earlier.speed("fast") / earlier.speed("old") == pytest.approx(2.0, rel=0.1)
    assert earlier.speed("fast") * earlier.speed("old") == pytest.approx(1.0, rel=0.1)
    ratios = sorted(seconds / tests[test] for test, seconds in earlier.estimates().items())
    assert ratios[-1] / ratios[0] < 1.4, "how long a test counts does not depend on where it ran"


def test_a_machine_alone_has_no_speed(config: pytest.Config) -> None:
    for seconds in (1.0, 9.0):
        earlier = EarlierRuns(config, {})
        for number in range(30):
            earlier.record(f"test_{number}", seconds, ["local"])
        earlier.save()
    assert EarlierRuns(config, {}).speed("local") == 1.0
    assert cached(config, SPEEDS) == {}
    assert cached(config, DURATIONS)["test_0"] == 9.0


def test_short_and_few_tests_say_nothing_of_a_machine(config: pytest.Config) -> None:
    for factor in (1.0, 5.0):
        earlier = EarlierRuns(config, {})
        for number in range(30):
            earlier.record(f"short_{number}", 0.001 * factor, ["fast"])
            earlier.record(f"long_{number}", 1.0, ["old"])
        for number in range(3):
            earlier.record(f"few_{number}", 1.0 * factor, ["fast"])
        earlier.save()
    assert EarlierRuns(config, {}).speed("fast") == 1.0


def test_a_test_of_several_machines_counts_as_on_the_slowest(config: pytest.Config) -> None:
    assert config.cache is not None
    config.cache.set(SPEEDS, {"fast": 2.0, "old": 0.5})
    earlier = EarlierRuns(config, {})
    earlier.record("test_both", 10.0, ["fast", "old"])
    earlier.record("test_none", 10.0)
    earlier.save()
    assert cached(config, DURATIONS) == {"test_both": 5.0, "test_none": 10.0}


def test_what_a_test_takes_after_its_end_counts(config: pytest.Config) -> None:
    earlier = EarlierRuns(config, {})
    earlier.record("test_a", 1.0)
    earlier.extend("test_a", 0.5)
    earlier.extend("test_unknown", 0.5)
    earlier.save()
    assert cached(config, DURATIONS) == {"test_a": 1.5}


@pytest.mark.parametrize("content", [[1], {"fast": "nonsense", "old": 0, "new": -3}, None])
def test_a_cache_of_another_form_is_ignored(config: pytest.Config, content: object) -> None:
    assert config.cache is not None
    config.cache.set(SPEEDS, content)
    assert [EarlierRuns(config, {}).speed(name) for name in ("fast", "old", "new")] == [1.0, 1.0, 1.0]


def test_measured_elsewhere_counts_only_what_this_cache_does_not_know(config: pytest.Config) -> None:
    earlier = EarlierRuns(config, {})
    earlier.record("test_here", 1.0)
    earlier.save()
    found = EarlierRuns(config, {"test_here": 9.0, "test_there": 2.0}).estimates()
    assert found == {"test_here": 1.0, "test_there": 2.0}


def test_without_a_cache_nothing_is_kept(pytester: pytest.Pytester) -> None:
    earlier = EarlierRuns(configured(pytester, "-p", "no:cacheprovider"), {"test_there": 2.0})
    earlier.record("test_here", 1.0, ["local"])
    earlier.save()
    assert earlier.estimates() == {"test_there": 2.0}
    assert not Path(pytester.path, ".pytest_cache").exists()


def test_local_hosts_are_one_machine() -> None:
    hosts = [HostSpec(name=f"local-{number}", kind="local", address="127.0.0.1", options={}) for number in (1, 2)]
    other = HostSpec(name="local", kind="ssh", address="rack", options={})
    assert len({machine_of(host) for host in hosts}) == 1
    assert machine_of(other) not in {machine_of(host) for host in hosts}
    others = [HostSpec(name=f"rack-{number}", kind="ssh", address="rack", options={}) for number in (1, 2)]
    assert {machine_of(host) for host in others} == {"rack-1", "rack-2"}


def test_the_cache_is_one_that_people_can_read(config: pytest.Config) -> None:
    earlier = EarlierRuns(config, {})
    earlier.record("test_a", 1 / 3, ["local"])
    earlier.save()
    path = config.rootpath / ".pytest_cache/v" / DURATIONS
    assert json.loads(path.read_text()) == {"test_a": 0.3333}
