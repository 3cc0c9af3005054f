"""Decisions about hosts that cannot hold every test: they do not count for the tests that they cannot run."""

from __future__ import annotations

from typing import Any

import pytest
from model_fleet import ModelFleet
from scheduled_fleet import fleet_of, host, item, worker_of

from pytest_propolis.distribution.scheduling import BuildTemplate, Item
from pytest_propolis.distribution.scheduling.backlog import Backlog
from pytest_propolis.distribution.scheduling.fleet import Fleet
from pytest_propolis.distribution.scheduling.planning.durations import Estimate
from pytest_propolis.distribution.scheduling.planning.horizon import remaining_s

SMALL: Any = {"slots": 4, "cpus": 3, "memory_mib": 1000}
BIG: Any = {"slots": 4, "cpus": 16, "memory_mib": 8000}
TOO_MUCH = pytest.mark.parametrize("needs", [{"cpus": 4}, {"memory_mib": 1500}], ids=["CPUs", "memory"])
"""For a small host, but not so much that a big one is emptied for it."""


def fast_and_slow(*, one_ahead: bool = False) -> ModelFleet:
    return fleet_of(
        host("fast", **SMALL), host("slow", speed=0.5, **BIG), workers=8 if not one_ahead else 20, one_ahead=one_ahead
    )


@TOO_MUCH
@pytest.mark.parametrize("one_ahead", [False, True])
def test_a_slow_host_begins_a_long_test_that_no_fast_one_can_hold(needs: dict[str, Any], one_ahead: bool) -> None:
    fleet = fast_and_slow(one_ahead=one_ahead)
    fleet.add_tests(item("long", 100, **needs), *(item(f"test{n}", 50) for n in range(20)))
    fleet.decide()
    assert fleet.where("long") == ("slow",)


@TOO_MUCH
def test_a_slow_host_still_leaves_long_tests_to_a_fast_one_that_can_hold_them(needs: dict[str, Any]) -> None:
    fleet = fast_and_slow()
    fleet.add_tests(item("wide", 100, **needs), *(item(f"long{n}", 100) for n in range(4)))
    fleet.add_tests(*(item(f"test{n}", 5) for n in range(20)))
    fleet.decide()
    assert fleet.where("wide") == ("slow",)
    assert {fleet.where(f"long{n}") for n in range(4)} - {None} == {("fast",)}


@TOO_MUCH
def test_a_slow_host_begins_what_a_worker_holds_if_no_fast_one_can_hold_it(needs: dict[str, Any]) -> None:
    fleet = fleet_of(host("fast", **SMALL), workers=1, one_ahead=True)
    fleet.add_tests(item("first", 0.1), item("long", 100, **needs))
    fleet.add_host(host("slow", speed=0.5, **{**BIG, "slots": 1}))
    fleet.decide()
    assert fleet.starts[0].following == "long"
    fleet.add_tests(*(item(f"test{n}", 50, module="n") for n in range(20)))
    fleet.add_workers("gw1")
    fleet.decide()
    assert len(fleet.running) == 2
    fleet.finish(worker_of(fleet, "first"))
    fleet.decide()
    assert fleet.where("long") == ("slow",)


def test_a_host_that_is_free_earlier_replaces_a_slow_one_though_a_fast_one_is_too_small() -> None:
    fleet = fleet_of(*(host(name, speed=0.5, **{**BIG, "slots": 1}) for name in "abc"), host("fast", **SMALL))
    fleet.add_tests(*(item(f"long{n}", 100, cpus=4) for n in range(3)))
    fleet.decide()
    assert len(fleet.running) == 3
    fleet.add_tests(item("pair", 90, hosts=2, cpus=4))
    fleet.decide()
    reason = fleet.scheduler.why_waiting("pair")
    first, *others = sorted(fleet.running, key=lambda worker: fleet.running[worker].hosts[0] in reason)
    for worker in (first, others[0]):
        fleet.finish(worker, 100)
    fleet.decide(10.0)
    assert len(fleet.where("pair") or ()) == 2


@TOO_MUCH
def test_no_template_is_made_where_none_of_its_tests_has_room(needs: dict[str, Any]) -> None:
    fleet = fleet_of(host("small", **SMALL, templates=frozenset()), host("big", **BIG, templates=frozenset()))
    fleet.add_tests(*(item(f"wide{n}", 300, guest="slow", **needs) for n in range(20)))
    fleet.add_tests(*(item(f"test{n}", 10) for n in range(20)))
    fleet.run_out()
    assert BuildTemplate("big", "slow") in fleet.builds
    assert BuildTemplate("small", "slow") not in fleet.builds


def known(*items: Item, hosts: tuple[Any, ...]) -> tuple[Backlog, Fleet]:
    """Return the items as a backlog, and the hosts as a fleet."""
    backlog, fleet = Backlog(), Fleet()
    for index, one in enumerate(items):
        seconds = one.estimate_s or 0.0
        backlog.add(index, backlog.queue(one.needs), Estimate(seconds, seconds))
    for spec in hosts:
        fleet.add(spec)
    fleet.know(backlog.demands)
    return backlog, fleet


@pytest.mark.parametrize(
    ("needs", "lasts_s"),
    [({}, 100), ({"cpus": 4}, 200), ({"memory_mib": 1500}, 200), ({"labels": {"zfs"}}, 400)],
)
def test_a_run_lasts_as_long_as_its_longest_test_on_the_fastest_host_that_can_run_it(
    needs: dict[str, Any], lasts_s: float
) -> None:
    hosts = (
        host("fast", **SMALL),
        host("slow", speed=0.5, **BIG),
        host("old", speed=0.25, labels=frozenset({"zfs"}), **BIG),
    )
    backlog, fleet = known(item("short", 1), item("long", 100, **needs), hosts=hosts)
    assert remaining_s(backlog, fleet, 0.0, 100) == lasts_s


@pytest.mark.parametrize(("needs", "at_once"), [({}, 4), ({"cpus": 2}, 2), ({"memory_mib": 1024}, 1)])
def test_a_run_lasts_longer_if_not_all_slots_can_be_used(needs: dict[str, Any], at_once: int) -> None:
    backlog, fleet = known(
        *(item(f"test{n}", 1, **needs) for n in range(95)), hosts=(host(slots=4, cpus=4, memory_mib=1024),)
    )
    assert remaining_s(backlog, fleet, 0.0, 1) == pytest.approx(100 / at_once)


def test_a_host_that_can_run_none_of_the_tests_with_a_label_does_not_make_it_less_scarce() -> None:
    zfs = frozenset({"zfs"})
    hosts = (host("small", labels=zfs, **SMALL), host("big", labels=zfs, **BIG), host("plain", **BIG))
    _, fleet = known(item("any"), item("wide", labels=zfs, cpus=4), hosts=hosts)
    assert fleet.speed_with(zfs) == 4
    fleet.lose("big")
    assert fleet.speed_with(zfs) == 0
    assert fleet.speed_with(frozenset()) == fleet.speed == 8


@TOO_MUCH
def test_a_host_is_emptied_for_a_long_test_as_soon_as_it_lasts_long_on_the_host_that_can_run_it(
    needs: dict[str, Any],
) -> None:
    backlog, _ = known(
        item("wide", 60, **needs), item("test", 1), hosts=(host("fast", **SMALL), host("slow", speed=0.5, **BIG))
    )
    assert [index for _, index, _ in backlog.wide(4, 1500, 100)] == [0]
    assert [index for _, index, _ in backlog.wide(4, 1500, 130)] == []
