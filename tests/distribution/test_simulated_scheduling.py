"""The simulation that compares schedulers: its rules, and its results for this project's scheduler."""

from __future__ import annotations

import pytest

from benchmarks.scheduling import makespan, workloads
from benchmarks.scheduling.simulated_cluster import Cluster
from benchmarks.scheduling.workloads import Host, Workload, make

TEST = workloads.Test("tests/test_a.py::test_0", 10.0, 10.0, 1024, 1, frozenset(), "alpine", 1)


def cluster(*tests: workloads.Test, slots: int = 1) -> Cluster:
    host = Host("h0", "laptop", slots, 4096, 4, frozenset(), 1.0)
    return Cluster(Workload("small", 1, (host,), {"alpine": 5.0}, tests, ()))


def test_no_host_is_overcommitted() -> None:
    simulated = cluster(TEST, TEST)
    simulated.start("gw0", [0], ["h0"])
    with pytest.raises(AssertionError, match="h0 is overcommitted"):
        simulated.start("gw1", [1], ["h0"])


def test_no_test_runs_without_the_labels_that_it_needs() -> None:
    with pytest.raises(AssertionError, match="cannot run it"):
        cluster(workloads.Test("a", 1, 1, 0, 0, frozenset({"zfs"}), "alpine", 1)).start("gw0", [0], ["h0"])


@pytest.mark.parametrize("policy", ["load", "loadscope", "worksteal"])
def test_no_scheduler_of_xdist_is_better_on_one_machine(policy: str) -> None:
    ours = makespan.run("laptop", 1)
    assert ours.ratio <= 1.05
    assert ours.makespan_s <= makespan.run_xdist("laptop", 1, policy).makespan_s


def test_a_worker_that_knows_one_test_ahead_runs_all_of_them_too() -> None:
    assert makespan.run("laptop", 2, one_ahead=True).ratio <= 1.10


def test_a_workload_is_the_same_each_time() -> None:
    assert make("laptop", 3) == make("laptop", 3)
