"""Decisions of the scheduler about workers that come and end, lost hosts, and waiting tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from model_fleet import ModelFleet
from scheduled_fleet import fleet_of, host, item, started, worker_of

from pytest_propolis.distribution.scheduling import EndWorker, Start


def test_what_is_kept_for_a_test_is_given_back_when_one_of_its_hosts_is_lost() -> None:
    fleet = fleet_of(host("a", slots=1), host("b", slots=1))
    fleet.add_tests(item("busy", 10))
    fleet.decide()
    fleet.add_tests(item("pair", 100, hosts=2))
    fleet.decide()
    busy, free = ("a", "b") if fleet.where("busy") == ("a",) else ("b", "a")
    fleet.add_tests(item("single", 1))
    fleet.lose_host(busy)
    fleet.decide()
    assert [run.hosts for run in fleet.running.values()] == [[free]]


def test_the_tests_of_a_lost_host_run_elsewhere() -> None:
    fleet = fleet_of(host("a"))
    fleet.add_tests(item("test"))
    fleet.decide()
    fleet.add_host(host("b"))
    fleet.lose_host("a")
    fleet.decide()
    assert fleet.where("test") == ("b",)


@pytest.mark.parametrize("one_ahead", [False, True])
@pytest.mark.parametrize("lose", [ModelFleet.lose_test, ModelFleet.lose_worker, ModelFleet.lose_and_regain_host])
@pytest.mark.parametrize(
    "needs",
    [{}, {"guest": "slow"}, {"hosts": 2}, {"exclusive": True}, {"guest": None, "hosts": 0, "cpus": 0}],
    ids=["one host", "another guest", "two hosts", "a host to itself", "no host"],
)
def test_a_test_that_is_lost_again_and_again_lets_the_others_run(
    needs: dict[str, Any], lose: Callable[[ModelFleet, str], None], one_ahead: bool
) -> None:
    fleet = fleet_of(host("a", slots=1), host("b", slots=1), workers=1, one_ahead=one_ahead)
    fleet.add_tests(item("doomed", 300, **needs), *(item(f"test{n}", 1.0) for n in range(5)))
    fleet.add_tests(item("plain", 1.0, guest=None, hosts=0), item("pair", 1.0, hosts=2))
    fleet.run_others("doomed", lose)
    assert "doomed" not in fleet.done
    fleet.run_out()
    assert fleet.done == set(fleet.items)


def test_a_test_that_is_lost_with_its_hosts_still_goes_before_shorter_ones() -> None:
    fleet = fleet_of(host(slots=1), workers=1)
    fleet.add_tests(item("long", 300), *(item(f"test{n}", 1.0) for n in range(5)))
    for _ in range(4):
        fleet.decide()
        fleet.lose_host("h0")
        fleet.add_host(host(slots=1))
    fleet.decide()
    assert fleet.where("long") == ("h0",)


def test_a_test_that_some_workers_crashed_with_still_goes_before_shorter_ones() -> None:
    fleet = fleet_of(host(slots=1), workers=1)
    fleet.add_tests(item("long", 300))
    for _ in range(3):
        fleet.decide()
        fleet.lose_test(worker_of(fleet, "long"))
    fleet.add_tests(*(item(f"test{n}", 1.0) for n in range(5)))
    fleet.decide()
    fleet.finish(worker_of(fleet, "test0"))  # shows how its module behaves
    fleet.decide()
    assert fleet.where("long") == ("h0",)


def test_it_says_that_a_test_waits_since_it_was_lost_too_often() -> None:
    fleet = fleet_of(host(slots=1), workers=1)
    fleet.add_tests(item("doomed", 300))
    for _ in range(5):
        fleet.decide()
        fleet.lose_test(worker_of(fleet, "doomed"))
    fleet.add_tests(item("other", 1.0))
    fleet.decide()
    reason = "it was lost too often: the other tests go first"
    assert fleet.scheduler.why_waiting("doomed") == reason
    assert [(some.reason, some.tests) for some in fleet.scheduler.waiting()] == [(reason, ("doomed",))]


def test_a_lost_test_that_may_not_run_again_does_not() -> None:
    fleet = fleet_of(host())
    fleet.add_tests(item("test"))
    fleet.decide()
    fleet.lose_test(worker_of(fleet, "test"), again=False)
    fleet.run_out()
    assert started(fleet) == ["test"]


def test_what_a_crashed_worker_held_runs_in_another_one() -> None:
    fleet = fleet_of(host(slots=1), workers=2, one_ahead=True)
    fleet.add_tests(item("a", 50), item("b", 0.1))
    fleet.decide()
    start = fleet.starts[0]
    assert start.following is not None
    fleet.lose_worker(start.worker, again=False)
    fleet.decide()
    assert fleet.where(start.following) == ("h0",)


def test_what_a_crashed_worker_had_in_its_batch_runs_in_another_one() -> None:
    fleet = fleet_of(workers=2)
    fleet.add_tests(*(item(f"test{n}", 0.001, guest=None, hosts=0, cpus=0) for n in range(40)))
    fleet.decide()
    batch = fleet.starts[-1]
    assert len(batch.tests) > 2
    fleet.finish(batch.worker)
    fleet.lose_worker(batch.worker, again=False)
    fleet.run_out()
    assert fleet.done == set(fleet.items)
    assert [start for start in fleet.starts if batch.tests[1] in start.tests] == [batch]


def test_a_worker_ends_with_the_last_test() -> None:
    fleet = fleet_of(host(slots=1), workers=1, one_ahead=True)
    fleet.add_tests(item("a", 1), item("b", 2))
    fleet.run_out()
    assert fleet.starts[-1].following is None
    assert fleet.ended == {"gw0"}


def test_idle_workers_end_when_all_tests_have_run() -> None:
    fleet = fleet_of(host(), workers=2)
    fleet.add_tests(item("test"))
    fleet.decide()
    fleet.finish("gw0")
    assert fleet.decide() == [EndWorker("gw0"), EndWorker("gw1")] or fleet.ended == {"gw0", "gw1"}
    assert fleet.ended == {"gw0", "gw1"}


def test_a_test_that_is_given_up_starts_without_hosts() -> None:
    fleet = fleet_of(host())
    fleet.add_tests(item("test", labels=frozenset({"zfs"})))
    assert not fleet.decide()
    assert fleet.give_up("test")
    assert fleet.decide() == [Start("gw0", ("test",), ())]
    assert not fleet.give_up("test")


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ({"labels": frozenset({"zfs"})}, "it needs 1 host with 1 CPU, 0 MiB, label zfs, and there are 0"),
        ({"memory_mib": 99_999}, "it needs 1 host with 1 CPU, 99999 MiB, and there are 0"),
        ({"hosts": 3}, "it needs 3 hosts with 1 CPU, 0 MiB, and there are 1"),
        ({"guest": "slow"}, "the template of slow is being made on h0"),
        ({"cpus": 16}, "0 of the 1 host that can run it now have room for 16 CPUs, 0 MiB"),
        ({}, "no worker is free"),
        ({"guest": None, "hosts": 0}, "no worker is free"),
    ],
)
def test_it_says_why_a_test_waits(needs: dict[str, Any], reason: str) -> None:
    fleet = fleet_of(host(templates=frozenset({"quick"})), workers=1)
    fleet.add_tests(item("busy"), item("other", guest="slow"))
    fleet.decide()
    assert fleet.scheduler.why_waiting("busy") == "it runs on h0"
    fleet.add_tests(item("test", **needs))
    fleet.decide()
    assert fleet.scheduler.why_waiting("test") == reason


def test_it_says_that_a_worker_holds_a_test() -> None:
    fleet = fleet_of(host(slots=1), workers=1, one_ahead=True)
    fleet.add_tests(item("a", 50), item("b", 0.1))
    fleet.decide()
    running, held = fleet.starts[0].tests[0], fleet.starts[0].following
    assert held is not None
    assert fleet.scheduler.why_waiting(held) == f"worker gw0 holds it as its next and runs {running}"


def test_what_waits_is_told_by_reason_with_the_number_of_tests() -> None:
    fleet = fleet_of(host(slots=1), workers=2)
    fleet.add_tests(*(item(f"test{number}") for number in range(9)), item("wide", labels={"gpu"}))
    fleet.decide()
    waiting = {some.reason: some.count for some in fleet.scheduler.waiting()}
    assert waiting == {
        "0 of the 1 slots of the hosts that can run it now are free": 8,
        "it needs 1 host with 1 CPU, 0 MiB, label gpu, and there are 0": 1,
    }


def test_a_worker_gets_the_tests_of_the_host_that_it_runs_on() -> None:
    fleet = fleet_of(host("h0", slots=2), host("h1", slots=2), workers=0)
    for worker, own_host in (("a", "h1"), ("b", "h0"), ("c", None), ("d", "h0"), ("e", "h1")):
        fleet.add_workers(worker, own_host=own_host)
    fleet.add_tests(*(item(f"t{number}", 10) for number in range(4)))
    fleet.decide()
    assert {worker: run.hosts for worker, run in fleet.running.items()} == {
        "a": ["h1"],
        "b": ["h0"],
        "d": ["h0"],
        "e": ["h1"],
    }


def test_a_worker_of_another_host_runs_what_no_other_can() -> None:
    fleet = fleet_of(host("h0"), host("h1", labels=frozenset({"zfs"})), workers=0)
    fleet.add_workers("a", own_host="h0")
    fleet.add_tests(item("test", labels=frozenset({"zfs"})))
    fleet.decide()
    assert fleet.where("test") == ("h1",)


def test_a_crashed_worker_of_a_host_is_not_used_again() -> None:
    fleet = fleet_of(host("h0"), workers=0)
    fleet.add_workers("a", "b", own_host="h0")
    fleet.lose_worker("a")
    fleet.add_tests(item("test"))
    fleet.decide()
    assert worker_of(fleet, "test") == "b"


def test_a_worker_runs_on_its_own_host_what_it_holds_already() -> None:
    fleet = fleet_of(host("h0", slots=1), host("h1", slots=1), workers=0, one_ahead=True)
    fleet.add_workers("near0", own_host="h0")
    fleet.add_workers("near1", own_host="h1")
    fleet.add_tests(*(item(f"test{n}", float(n), module=f"m{n}") for n in range(1, 13)))
    while len(fleet.done) < 12:
        fleet.decide(1.0)
        assert {(run.hosts[0], worker) for worker, run in fleet.running.items()} <= {("h0", "near0"), ("h1", "near1")}
        for worker in sorted(fleet.running):
            fleet.finish(worker)


def test_a_worker_runs_elsewhere_what_it_holds_if_its_own_host_cannot() -> None:
    fleet = fleet_of(host("h0", slots=1), workers=0, one_ahead=True)
    fleet.add_workers("near", own_host="h0")
    fleet.add_tests(item("first", 1.0), item("held", 1.0), item("last", 1.0))
    fleet.decide()
    fleet.add_host(host("h1", slots=1))
    fleet.lose_host("h0")
    fleet.run_out()
    assert fleet.done == {"first", "held", "last"}


def test_a_test_that_is_lost_again_and_again_goes_behind_those_of_other_guests() -> None:
    fleet = fleet_of(host(slots=1, cpus=1), workers=1)
    # The long one, which fits nowhere, makes its guest the most wanted.
    fleet.add_tests(item("doomed", 1.0, guest="slow"), item("wide", 300, guest="slow", cpus=2), item("other", 1.0))
    fleet.run_others("doomed", ModelFleet.lose_test)


def test_a_test_that_was_lost_too_often_does_not_take_the_worker_for_which_others_wait() -> None:
    fleet = fleet_of(workers=0)
    others = (item(name, seconds, module="n", guest=None, hosts=0) for name, seconds in (("probe", 100), ("test", 200)))
    fleet.add_tests(item("doomed", 300, guest=None, hosts=0), *others)
    for number in range(5):
        fleet.add_workers(f"gw{number}")
        fleet.decide()
        if fleet.running[f"gw{number}"].tests == ["probe"]:
            fleet.finish(f"gw{number}")
            fleet.decide()
        fleet.lose_worker(worker_of(fleet, "doomed"))
    fleet.decide()
    fleet.add_workers("gw5")
    fleet.decide()
    assert worker_of(fleet, "test") == "gw5"


def test_a_test_that_a_worker_holds_can_be_given_up_twice() -> None:
    fleet = fleet_of(host(slots=1), workers=1, one_ahead=True)
    fleet.add_tests(item("first", 0.1), item("next", 0.2))
    fleet.decide()
    assert fleet.give_up("next")
    assert fleet.give_up("next")
    fleet.run_out()
    assert fleet.done == {"first", "next"}


@pytest.mark.parametrize("lose", [ModelFleet.lose_test, ModelFleet.lose_worker, ModelFleet.lose_and_regain_host])
def test_a_test_that_was_lost_too_often_does_not_go_before_one_that_only_a_slow_host_can_run(
    lose: Callable[[ModelFleet, str], None],
) -> None:
    fleet = fleet_of(host("slow", slots=1, speed=0.5), host("fast", slots=1, cpus=1), workers=1)
    fleet.add_tests(item("doomed"), item("wide", cpus=4))
    fleet.run_others("doomed", lose)
    assert fleet.where("doomed") is None


@pytest.mark.parametrize("needs", [{"hosts": 2}, {"exclusive": True}], ids=["two hosts", "a host to itself"])
def test_hosts_are_gathered_for_what_a_crashed_worker_held(needs: dict[str, Any]) -> None:
    fleet = fleet_of(host("a", slots=1), host("b", slots=1), workers=1, one_ahead=True)
    fleet.add_tests(item("first", 100, hosts=2), item("gathered", 10, **needs))
    fleet.decide()
    assert fleet.starts[-1].following == "gathered"
    fleet.lose_worker(fleet.starts[-1].worker, again=False)
    fleet.add_workers("gw1")
    fleet.decide()
    assert worker_of(fleet, "gathered") == "gw1"
