"""Builders of hosts, tests and fleets for the tests of the scheduler."""

from __future__ import annotations

from typing import Any

from model_fleet import ModelFleet

from pytest_propolis.distribution.scheduling import HostSpec, Item, Needs

__all__ = ["BUILD_S", "fleet_of", "host", "item", "started", "worker_of"]

BUILD_S = {"quick": 1.0, "slow": 50.0}


def host(name: str = "h0", *, slots: int = 4, **given: Any) -> HostSpec:
    defaults = {"memory_mib": 8192, "cpus": 16, "templates": frozenset(BUILD_S)}
    return HostSpec(name, slots, **{**defaults, **given})


def item(name: str, estimate_s: float | None = 1.0, *, module: str = "m", **needs: Any) -> Item:
    return Item(name, Needs(**{"guest": "quick", "cpus": 1, **needs}), module, estimate_s)


def fleet_of(*hosts: HostSpec, workers: int = 8, one_ahead: bool = False, latency_s: float = 0.0) -> ModelFleet:
    fleet = ModelFleet(BUILD_S, one_ahead=one_ahead, latency_s=latency_s)
    for one in hosts:
        fleet.add_host(one)
    fleet.add_workers(*(f"gw{number}" for number in range(workers)))
    return fleet


def started(fleet: ModelFleet) -> list[str]:
    return [test for start in fleet.starts for test in start.tests]


def worker_of(fleet: ModelFleet, test: str) -> str:
    return next(worker for worker, run in fleet.running.items() if test in run.tests)
