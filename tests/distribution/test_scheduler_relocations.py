"""Decisions of the scheduler about tests that have lost their hosts, and run again on other ones."""

from __future__ import annotations

from typing import Any

import pytest
from scheduled_fleet import fleet_of, host, item, worker_of

from pytest_propolis.distribution.scheduling import Relocate


def test_a_test_that_has_lost_its_host_gets_another_one_when_there_is_room() -> None:
    fleet = fleet_of(host("h0", slots=1), host("h1", slots=1), workers=2)
    fleet.add_tests(item("one", 100), item("two", 90))
    fleet.decide()
    (lost,), (left,) = fleet.where("one") or (), fleet.where("two") or ()
    fleet.lose_host_but_not_its_tests(lost)
    assert not fleet.decide()
    fleet.finish(worker_of(fleet, "two"), 90)
    assert fleet.decide() == [Relocate(worker_of(fleet, "one"), "one", (left,))]
    assert [state.slots for state in fleet.scheduler.hosts() if state.alive] == [0]
    fleet.finish(worker_of(fleet, "one"), 200)
    assert [state.slots for state in fleet.scheduler.hosts() if state.alive] == [1]


def test_a_test_on_two_hosts_of_which_one_is_lost_holds_none_until_it_gets_two() -> None:
    fleet = fleet_of(host("h0", slots=1), host("h1", slots=1), host("h2", slots=1), workers=1)
    fleet.add_tests(item("both", hosts=2))
    fleet.decide()
    lost, kept = fleet.where("both") or ()
    fleet.lose_host_but_not_its_tests(lost)
    assert sum(state.slots for state in fleet.scheduler.hosts() if state.alive) == 2
    fleet.decide()
    found = fleet.where("both") or ()
    assert {*found, lost} == {"h0", "h1", "h2"}
    assert kept in found


@pytest.mark.parametrize(
    "needs",
    [{"hosts": 2}, {"exclusive": True}, {"cpus": 3}, {"memory_mib": 3000}],
    ids=["two hosts", "a host to itself", "wide", "large"],
)
@pytest.mark.parametrize("one_ahead", [False, True])
def test_hosts_are_kept_for_a_test_that_has_lost_its_own_though_others_wait_for_them(
    needs: dict[str, Any], one_ahead: bool
) -> None:
    hosts = {name: host(name, slots=4, cpus=4, memory_mib=4000) for name in ("h0", "h1", "h2")}
    fleet = fleet_of(*hosts.values(), workers=20, one_ahead=one_ahead)
    fleet.add_tests(item("moved", 500, module="n", **needs))
    fleet.decide()
    before = fleet.where("moved") or ()
    fleet.add_tests(*(item(f"test{n}", 10, memory_mib=1000) for n in range(200)))
    fleet.decide()
    fleet.lose_host_but_not_its_tests(before[0])
    displaced = len(fleet.displaced)
    # One test after the other ends, so that two hosts, or all of a host, are never free by themselves.
    for _ in range(12 + displaced):
        fleet.decide(1.0)
        if fleet.where("moved"):
            break
        ready = [worker for worker in fleet.running if worker not in fleet.displaced]  # the one that began first first
        fleet.finish(ready[0])
    after = fleet.where("moved") or ()
    assert len(after) == len(before)
    assert before[0] not in after
    assert len(fleet.done) < 20
    fleet.run_out()
    assert fleet.done == set(fleet.items)


def test_hosts_that_are_kept_for_a_test_that_has_lost_its_own_are_given_back_if_its_worker_crashes() -> None:
    fleet = fleet_of(*(host(name, slots=1) for name in ("h0", "h1", "h2")), workers=4)
    fleet.add_tests(item("both", 100, hosts=2))
    fleet.decide()
    lost, kept = fleet.where("both") or ()
    fleet.add_tests(item("one", 100))
    fleet.decide()
    (busy,) = fleet.where("one") or ()
    fleet.lose_host_but_not_its_tests(lost)
    fleet.add_tests(item("other", 1))
    assert not fleet.decide()
    assert fleet.scheduler.why_waiting("both") == f"1 of its 2 hosts are kept for it; {busy} will follow"
    fleet.lose_worker(worker_of(fleet, "both"), again=False)
    fleet.decide()
    assert fleet.where("other") == (kept,)


def test_a_test_that_has_lost_its_host_gets_others_when_one_that_was_kept_for_it_is_lost_too() -> None:
    fleet = fleet_of(*(host(f"h{n}", slots=1) for n in range(4)), workers=4)
    fleet.add_tests(item("both", 100, hosts=2))
    fleet.decide()
    fleet.add_tests(item("one", 100, module="n"), item("two", 100, module="o"))
    fleet.decide()
    lost, kept = fleet.where("both") or ()
    fleet.lose_host_but_not_its_tests(lost)
    fleet.decide()
    fleet.lose_host_but_not_its_tests(kept)
    fleet.decide()
    for test in ("one", "two"):
        fleet.finish(worker_of(fleet, test))
    fleet.decide()
    assert {*(fleet.where("both") or ()), lost, kept} == {"h0", "h1", "h2", "h3"}


def test_a_test_that_has_lost_its_host_learns_that_there_is_no_other_one() -> None:
    fleet = fleet_of(host("h0"), host("h1", labels=frozenset({"zfs"})), workers=1)
    fleet.add_tests(item("test", labels=frozenset({"zfs"})))
    fleet.decide()
    fleet.lose_host_but_not_its_tests("h1")
    assert fleet.decide() == [Relocate("gw0", "test", ())]
    fleet.finish("gw0")
    assert fleet.done == {"test"}
