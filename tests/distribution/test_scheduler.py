"""Decisions of the scheduler, each also checked by `ModelFleet`."""

from __future__ import annotations

import dataclasses

import pytest
from scheduled_fleet import fleet_of, host, item, started, worker_of

from pytest_propolis.distribution.scheduling import BuildTemplate, Needs, Start


def test_the_longest_test_starts_first() -> None:
    fleet = fleet_of(host(slots=1))
    fleet.add_tests(item("short", 1), item("long", 100), item("middle", 10))
    fleet.run_out()
    # The shortest one of a module goes first, to show whether its estimates are right.
    assert started(fleet) == ["short", "long", "middle"]


def test_a_template_is_made_before_its_tests_start() -> None:
    fleet = fleet_of(host(templates=frozenset()))
    fleet.add_tests(item("test"))
    fleet.decide()
    assert fleet.builds == [BuildTemplate("h0", "quick")]
    assert not fleet.running
    fleet.make_template("h0", "quick")
    fleet.decide()
    assert fleet.where("test") == ("h0",)


def test_a_host_begins_with_the_template_that_is_made_fastest() -> None:
    fleet = fleet_of(host(templates=frozenset()))
    fleet.add_tests(*(item(f"slow{n}", 100, guest="slow") for n in range(20)), *(item(f"q{n}", 50) for n in range(20)))
    fleet.decide()
    assert [build.guest for build in fleet.builds] == ["quick", "slow"]


def test_a_template_is_made_again_on_a_host_that_comes_back_without_it() -> None:
    fleet = fleet_of(host())
    fleet.lose_host("h0")
    fleet.add_tests(item("test"))
    fleet.decide()
    fleet.add_host(host(templates=frozenset()))
    fleet.decide()
    assert fleet.builds == [BuildTemplate("h0", "quick")]


def test_slots_are_kept_for_long_tests_until_their_template_is_made() -> None:
    fleet = fleet_of(host(slots=4, templates=frozenset({"quick"})))
    fleet.add_tests(*(item(f"long{n}", 300, guest="slow") for n in range(3)))
    fleet.decide()
    assert fleet.builds == [BuildTemplate("h0", "slow")]
    fleet.add_tests(*(item(f"middle{n}", 60) for n in range(4)), *(item(f"short{n}", 1) for n in range(4)))
    fleet.decide(20.0)
    assert not any(start.tests[0].startswith("middle") for start in fleet.starts)
    assert len(fleet.running) == 3
    fleet.make_template("h0", "slow")
    for worker in sorted(fleet.running):
        fleet.finish(worker)
    fleet.decide(30.0)
    assert sum(run.tests[0].startswith("long") for run in fleet.running.values()) == 3


def test_no_slot_is_kept_for_a_template_that_is_overdue() -> None:
    fleet = fleet_of(host(slots=4, templates=frozenset({"quick"})))
    fleet.add_tests(*(item(f"long{n}", 300, guest="slow") for n in range(3)))
    fleet.decide()
    fleet.add_tests(*(item(f"middle{n}", 60) for n in range(4)))
    fleet.decide(200.0)
    assert len(fleet.running) == 3


def test_a_test_runs_only_where_its_labels_are() -> None:
    fleet = fleet_of(host("plain"), host("storage", labels=frozenset({"zfs"})))
    fleet.add_tests(*(item(f"t{n}", labels=frozenset({"zfs"})) for n in range(3)))
    fleet.decide()
    assert {start.hosts for start in fleet.starts} == {("storage",)}


def test_a_test_waits_for_memory_and_starts_when_it_is_given_back() -> None:
    fleet = fleet_of(host(memory_mib=4096))
    fleet.add_tests(item("a", 5, memory_mib=3000), item("b", 4, memory_mib=3000))
    fleet.decide()
    assert len(fleet.running) == 1
    fleet.finish(next(iter(fleet.running)))
    fleet.decide()
    assert len(fleet.starts) == 2


def test_cpus_are_kept_for_the_slots_that_are_free() -> None:
    fleet = fleet_of(host(slots=4, cpus=8))
    fleet.add_tests(*(item(f"wide{n}", 12, cpus=6) for n in range(3)), *(item(f"n{n}", 10) for n in range(60)))
    fleet.decide()
    assert len(fleet.running) == 4


def test_a_host_with_a_scarce_label_prefers_the_tests_that_need_it() -> None:
    fleet = fleet_of(
        *(host(f"plain{n}", slots=8) for n in range(4)), host("zfs", slots=1, labels=frozenset({"zfs"})), workers=40
    )
    fleet.add_tests(*(item(f"any{n}", 60) for n in range(60)))
    fleet.add_tests(*(item(f"zfs{n}", 50, labels=frozenset({"zfs"})) for n in range(4)))
    fleet.run_out()
    assert all(start.tests[0].startswith("zfs") for start in fleet.starts[:40] if start.hosts == ("zfs",))
    assert any(start.hosts == ("zfs",) for start in fleet.starts[:40])


def test_the_template_of_a_guest_of_unknown_build_time_is_made() -> None:
    fleet = fleet_of(host())
    fleet.add_tests(item("test", guest="new"))
    fleet.run_out()
    assert fleet.builds == [BuildTemplate("h0", "new")]
    assert fleet.done == {"test"}


def test_a_slow_host_gets_no_long_test_that_a_fast_one_can_run() -> None:
    fleet = fleet_of(host("fast", slots=1, speed=1.0), host("old", slots=1, speed=0.4))
    fleet.add_tests(*(item(f"long{n}", 60) for n in range(2)), *(item(f"short{n}", 0.1) for n in range(30)))
    fleet.run_out()
    assert all(start.hosts == ("fast",) for start in fleet.starts if start.tests[0].startswith("long"))
    assert any(start.hosts == ("old",) for start in fleet.starts)


def test_a_slow_host_runs_long_tests_if_there_is_no_other() -> None:
    fleet = fleet_of(host("old", speed=0.1))
    fleet.add_tests(item("long", 1000))
    fleet.decide()
    assert fleet.where("long") == ("old",)


def test_a_test_of_several_hosts_starts_on_all_of_them_at_once() -> None:
    fleet = fleet_of(host("a"), host("b"), host("c"))
    fleet.add_tests(item("pair", hosts=2), item("three", hosts=3))
    fleet.decide()
    assert len(set(fleet.where("pair") or ())) == 2
    assert len(set(fleet.where("three") or ())) == 3


def test_hosts_are_kept_for_a_test_of_several_though_others_wait_for_them() -> None:
    fleet = fleet_of(host("a", slots=1), host("b", slots=1))
    fleet.add_tests(*(item(f"single{n}", 10) for n in range(20)))
    fleet.decide()
    fleet.add_tests(item("pair", 1, hosts=2))
    first, second = sorted(fleet.running)
    fleet.finish(first)
    fleet.decide()
    assert len(fleet.running) == 1
    assert "of its 2 hosts" in fleet.scheduler.why_waiting("pair")
    fleet.finish(second)
    fleet.decide()
    assert fleet.where("pair") is not None


def test_a_host_that_is_free_earlier_replaces_one_that_is_waited_for() -> None:
    fleet = fleet_of(host("a", slots=1), host("b", slots=1))
    fleet.add_tests(item("long0", 100), item("long1", 100))
    fleet.decide()
    fleet.add_tests(item("pair", 1, hosts=2))
    fleet.finish(worker_of(fleet, "long0"), 100.0)
    fleet.decide(1.0)
    assert fleet.where("pair") is None
    fleet.add_host(host("c", slots=1))
    fleet.decide(10.0)
    assert "c" in (fleet.where("pair") or ())


def test_tests_that_need_the_same_hosts_do_not_block_each_other() -> None:
    fleet = fleet_of(*(host(f"h{n}", slots=1) for n in range(3)))
    fleet.add_tests(*(item(f"pair{n}", hosts=2) for n in range(5)), *(item(f"whole{n}", hosts=3) for n in range(3)))
    fleet.run_out()
    assert fleet.done == set(fleet.items)


def test_an_exclusive_test_shares_its_host_with_no_other() -> None:
    fleet = fleet_of(host())
    fleet.add_tests(*(item(f"t{n}", 10) for n in range(6)), item("alone", 1, exclusive=True))
    fleet.run_out()  # ModelFleet checks that it is alone.
    assert fleet.done == set(fleet.items)


def test_a_wide_test_has_a_host_emptied_for_it_before_it_is_the_last() -> None:
    fleet = fleet_of(host(slots=4, cpus=4))
    fleet.add_tests(*(item(f"n{n}", 20) for n in range(5)))
    fleet.decide()
    fleet.add_tests(item("wide", 90, cpus=4), *(item(f"later{n}", 20) for n in range(12)))
    while fleet.where("wide") is None:
        fleet.finish(min(fleet.running), 20.0)
        fleet.decide(1.0)
    assert len(fleet.items) - len(fleet.started) > 4


def test_a_test_of_unknown_duration_starts_before_short_ones() -> None:
    fleet = fleet_of(host(slots=1))
    fleet.add_tests(*(item(f"known{n}", 5) for n in range(10)), item("new", None))
    fleet.run_out()
    assert started(fleet).index("new") == 1  # Behind the one that shows how the module behaves.


def test_the_estimates_of_a_module_are_corrected_by_what_its_tests_take() -> None:
    fleet = fleet_of(host(slots=1))
    fleet.add_tests(*(item(f"wrong{n}", 2, module="wrong") for n in range(3)), *(item(f"r{n}", 8) for n in range(3)))
    fleet.decide()
    while len(started(fleet)) < 3:
        worker = next(iter(fleet.running))
        fleet.finish(worker, 20.0 if "wrong" in fleet.running[worker].tests[0] else 8.0)
        fleet.decide()
    assert started(fleet)[2].startswith("wrong")


def test_very_short_tests_are_sent_in_batches_if_messages_are_slow() -> None:
    fleet = fleet_of(host(slots=1), latency_s=0.02)
    fleet.add_tests(*(item(f"t{n}", 0.05) for n in range(200)))
    fleet.decide()
    assert 10 <= len(fleet.starts[0].tests) <= 20


def test_tests_that_never_ran_are_sent_in_batches_once_their_neighbours_are_known_to_be_short() -> None:
    fleet = fleet_of(host(slots=1), latency_s=0.02)
    fleet.add_tests(*(item(f"t{n}", None) for n in range(600)))
    fleet.decide()
    assert len(fleet.starts[0].tests) == 1
    while len(fleet.starts) < 14:
        fleet.finish(next(iter(fleet.running)), 0.05)
        fleet.decide()
    assert 10 <= len(fleet.starts[-1].tests) <= 20


def test_tests_are_sent_one_by_one_if_messages_cost_nothing() -> None:
    fleet = fleet_of(host(slots=1))
    fleet.add_tests(*(item(f"t{n}", 0.05) for n in range(20)))
    fleet.run_out()
    assert all(len(start.tests) == 1 for start in fleet.starts)


def test_a_long_test_is_followed_by_a_short_one_and_a_short_one_by_a_long_one() -> None:
    fleet = fleet_of(host(slots=1), workers=1, one_ahead=True)
    fleet.add_tests(*(item(f"long{n}", 100) for n in range(3)), *(item(f"short{n}", 0.1) for n in range(3)))
    fleet.run_out()
    kinds = [test.rstrip("0123456789") for test in started(fleet)]
    assert kinds == ["short", "long", "short", "long", "short", "long"]


def test_a_test_without_a_vm_needs_a_worker_only() -> None:
    fleet = fleet_of()
    fleet.add_tests(item("plain", guest=None, hosts=0))
    assert fleet.decide() == [Start("gw0", ("plain",), ())]


def test_tests_without_vms_are_sent_in_batches_as_soon_as_they_are_known_to_be_short() -> None:
    fleet = fleet_of(workers=2, one_ahead=True)
    fleet.add_tests(*(item(f"test{n}", None, guest=None, hosts=0, cpus=0) for n in range(300)))
    while len(fleet.done) < 300:
        fleet.decide()
        for worker in sorted(fleet.running):
            fleet.finish(worker, 0.001)
    assert len(fleet.starts) < 60
    assert max(len(start.tests) for start in fleet.starts) <= 300 / 2 / 3


def test_tests_without_vms_that_take_long_are_sent_one_by_one() -> None:
    fleet = fleet_of(workers=2, one_ahead=True)
    fleet.add_tests(*(item(f"test{n}", 3.0, guest=None, hosts=0, cpus=0) for n in range(30)))
    fleet.run_out()
    assert all(len(start.tests) == 1 for start in fleet.starts)


def test_more_workers_than_slots_stay_for_the_tests_without_vms() -> None:
    fleet = fleet_of(host(slots=1), workers=4, one_ahead=True)
    fleet.add_tests(*(item(f"test{n}", 10.0, guest=None, hosts=0, cpus=0) for n in range(20)))
    fleet.decide()
    assert all(start.following is not None for start in fleet.starts)
    assert len(fleet.starts) == 4


def test_the_same_calls_have_the_same_answers() -> None:
    def run() -> list[object]:
        fleet = fleet_of(*(host(f"h{n}", templates=frozenset()) for n in range(4)))
        fleet.add_tests(*(item(f"t{n}", n % 7 + 0.5, module=f"m{n % 5}", hosts=1 + n % 2) for n in range(60)))
        fleet.run_out()
        return [*fleet.starts, *fleet.builds]

    assert run() == run()


def test_ids_are_unique() -> None:
    fleet = fleet_of()
    fleet.add_tests(item("test"))
    with pytest.raises(ValueError, match="same id"):
        fleet.scheduler.tests_known([item("test")])


def test_needs_travel_as_plain_values() -> None:
    needs = Needs(guest="quick", memory_mib=512, cpus=2, hosts=2, labels=frozenset({"zfs"}), exclusive=True)
    assert Needs(**dataclasses.asdict(needs)) == needs


def test_needs_cannot_be_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        Needs(cpus=-1)


def test_a_host_that_found_no_worker_gets_the_next_one_that_is_free() -> None:
    hosts = (host(name, slots=1, labels=frozenset({name})) for name in "abc")
    fleet = fleet_of(*hosts, workers=2)
    fleet.add_tests(*(item(f"on {name}", labels=frozenset({name})) for name in "abc"))
    fleet.decide()
    running = sorted(fleet.running)
    assert len(running) == 2
    fleet.finish(running[0])
    fleet.decide()
    assert sorted(started(fleet)) == ["on a", "on b", "on c"]


def test_a_worker_goes_on_with_its_next_test_on_the_host_for_which_that_was_chosen() -> None:
    fleet = fleet_of(host("fast", slots=1, speed=1.2), host("slow", slots=1), workers=4, one_ahead=True)
    fleet.add_tests(*(item(f"long{n}", 100) for n in range(6)), *(item(f"short{n}", 0.1, module="n") for n in range(6)))
    fleet.decide()
    worker = next(worker for worker, run in fleet.running.items() if run.hosts == ["slow"])
    following = fleet.held[worker]
    assert following is not None
    assert following.startswith("long")
    fleet.finish(worker)
    fleet.decide()
    assert fleet.where(following) == ("slow",)


def test_a_long_test_is_not_followed_by_one_for_which_hosts_are_gathered_if_there_is_another() -> None:
    hosts = (host(name, slots=2, templates=frozenset({"quick"})) for name in "ab")
    fleet = fleet_of(*hosts, workers=1, one_ahead=True)
    fleet.add_tests(*(item(f"long{n}", 100) for n in range(4)), item("pair", 0.1, module="p", guest="slow", hosts=2))
    fleet.add_tests(*(item(name, 0.2, module="n", guest=None, hosts=0) for name in ("probe", "short")))
    fleet.decide()
    assert [start.following for start in fleet.starts] == ["short"]
