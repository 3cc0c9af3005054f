"""Seeded workloads that compare schedulers of VM tests: hosts, tests, and faults at given times.

The rules, the same for every scheduler:

- A test holds, on each of ``hosts`` distinct hosts at the same time, one slot, ``memory_mib`` and ``cpus``. Its labels
  are a subset of each host's. It runs for ``duration_s / min(speed of its hosts)``. Nothing is overcommitted.
- A host needs the template of a guest before a test of that guest can run on it. All hosts start without templates.
  Making one takes ``template_s / speed`` and holds one slot. A test may make it: it then holds what it needs from the
  start. A test that is placed on a host where its template is being made waits there, holding what it needs.
  If a test is lost while it makes a template, the making goes on and keeps the slot (not the memory and the cpus).
- ``host-death`` takes the host away, with its templates and the tests on it: for good, or until a ``host-return``
  brings it back, empty. ``worker-crash`` ends one test on ``host``: of the N that are placed there in order of start
  (those that wait for a template too), number ``pick % N``; none if N is 0. Templates survive it.
- A test that was lost runs again, in full. The makespan is the time when the last test has run.
- A message takes ``latency_s``: a test holds what it needs for so long before it begins (and makes its template after
  that). Tests that were sent in one batch run one after the other in the same slot of one host, which holds the most
  that any of them needs; they pay it once. If one is lost, those behind it in the batch were never started.
- A scheduler may read everything but ``Test.duration_s`` and ``Workload.events``: it sees ``Test.estimate_s``.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    kind: str
    slots: int
    memory_mib: int
    cpus: int
    labels: frozenset[str]
    speed: float  # 1.0 is the reference: a test of 10 s takes 20 s on a host of speed 0.5


@dataclass(frozen=True, slots=True)
class Test:
    id: str
    duration_s: float  # on a host of speed 1.0, with the template there; unknown to a scheduler
    estimate_s: float | None  # what an earlier run measured; None for a new test
    memory_mib: int
    cpus: int
    labels: frozenset[str]
    guest: str
    hosts: int


@dataclass(frozen=True, slots=True)
class Event:
    at_s: float
    kind: Literal["host-death", "host-return", "worker-crash"]
    host: str
    pick: int


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    seed: int
    hosts: tuple[Host, ...]
    guests: dict[str, float]  # name -> seconds that its template takes on a host of speed 1.0
    tests: tuple[Test, ...]
    events: tuple[Event, ...]
    latency_s: float = 0.0


#: kind -> slots, memory, cpus, labels, speed
KINDS: Final[dict[str, tuple[int, int, int, frozenset[str], float]]] = {
    "laptop": (8, 32_768, 16, frozenset({"kvm", "zfs"}), 1.0),
    "small": (4, 16_384, 8, frozenset({"kvm"}), 1.0),
    "rack": (16, 65_536, 32, frozenset({"kvm"}), 1.1),
    "big": (64, 262_144, 96, frozenset({"kvm", "nested"}), 1.2),
    "storage": (16, 131_072, 32, frozenset({"kvm", "zfs"}), 1.0),
    "old": (8, 32_768, 8, frozenset[str](), 0.5),
    "gpu": (8, 65_536, 32, frozenset({"kvm", "gpu"}), 1.0),
}
#: name -> hosts of each kind, tests, host deaths, worker crashes
PRESETS: Final[dict[str, tuple[dict[str, int], int, int, int]]] = {
    "laptop": ({"laptop": 1}, 1_000, 0, 2),
    "rack": ({"small": 6, "rack": 8, "big": 1, "storage": 3, "old": 2}, 5_000, 1, 10),
    "fleet": ({"small": 200, "rack": 190, "big": 40, "storage": 50, "old": 20}, 50_000, 5, 100),
    "deep": ({"small": 50, "rack": 48, "big": 10, "storage": 12, "old": 5}, 50_000, 3, 60),
    "first": ({"small": 6, "rack": 8, "big": 1, "storage": 3, "old": 2}, 15_000, 1, 10),
    "wrong": ({"small": 6, "rack": 8, "big": 1, "storage": 3, "old": 2}, 15_000, 1, 10),
    "lonely": ({"small": 6, "rack": 8, "big": 1, "storage": 3, "old": 2, "gpu": 1}, 15_000, 0, 10),
    "tides": ({"small": 12, "rack": 8, "big": 1, "storage": 3, "old": 2}, 15_000, 6, 10),
    "ants": ({"small": 3, "rack": 1}, 60_000, 0, 5),
}
#: A module of tests is quick, mixed or slow: weight, then the weights of short, medium and long tests in it.
MODULES: Final = ((0.45, (0.94, 0.05, 0.01)), (0.30, (0.50, 0.45, 0.05)), (0.25, (0.05, 0.45, 0.50)))
#: Median in s and sigma of the log-normal durations of short, medium and long tests, and the cut at both ends.
DURATIONS: Final = ((0.5, 0.8), (8.0, 0.9), (90.0, 0.6))
SHORTEST_S: Final = 0.1
LONGEST_S: Final = 180.0


def make(preset: str, seed: int) -> Workload:
    """Return the workload of this preset and seed: the same on every machine with the same Python version."""
    kinds, count, deaths, crashes = PRESETS[preset]
    rng = random.Random(f"{preset}/{seed}")
    hosts = tuple(_host(kind, index) for kind, number in kinds.items() for index in range(number))
    guests = {f"guest{index:02}": round(rng.uniform(10, 60), 1) for index in range(12)}
    tests: list[Test] = []
    while len(tests) < count:
        module = _module(rng, len(tests), list(guests), len(hosts))
        tests += TWISTS[preset](rng, module) if preset in TWISTS else module
    latency_s = 0.02 if preset == "ants" else 0.0
    quiet = Workload(preset, seed, hosts, guests, tuple(tests[:count]), (), latency_s)
    return replace(quiet, events=_events(rng, hosts, deaths, crashes, lower_bound(quiet), preset == "tides"))


def _host(kind: str, index: int) -> Host:
    slots, memory, cpus, labels, speed = KINDS[kind]
    return Host(f"{kind}{index:03}", kind, slots, memory, cpus, labels, speed)


def _module(rng: random.Random, first: int, guests: list[str], host_count: int) -> list[Test]:
    """Return 5 to 60 tests that follow each other in collection order and share a guest and labels."""
    guest = rng.choices(guests, [1 / (rank + 1) for rank in range(len(guests))])[0]
    classes = rng.choices(MODULES, [weight for weight, _ in MODULES])[0][1]
    labels = frozenset(rng.choices(([], ["kvm"], ["zfs"], ["nested"]), (50, 36, 8, 6 if host_count > 1 else 0))[0])
    memory = rng.choices((256, 512, 1024, 2048, 4096, 8192), (20, 35, 25, 12, 6, 2))[0]
    tests = []
    for number in range(rng.randint(5, 60)):
        median, sigma = rng.choices(DURATIONS, classes)[0]
        duration = min(max(rng.lognormvariate(math.log(median), sigma), SHORTEST_S), LONGEST_S)
        estimate = None if rng.random() < 0.10 else round(duration * rng.lognormvariate(0, 0.25), 3)
        multi = host_count >= 4 and "nested" not in labels and rng.random() < 0.03
        count = rng.choices((2, 3, 4), (6, 3, 0 if "zfs" in labels else 1))[0] if multi else 1
        cpus = rng.choices((1, 2, 4, 8), (55, 33, 10, 2))[0]
        name = f"tests/test_{first:05}.py::test_{number:02}"
        tests.append(Test(name, round(duration, 3), estimate, memory, cpus, labels, guest, count))
    return tests


def _first(rng: random.Random, module: list[Test]) -> list[Test]:
    """Forget all estimates: the first run ever."""
    return [replace(test, estimate_s=None) for test in module]


def _wrong(rng: random.Random, module: list[Test]) -> list[Test]:
    """Make the estimates of a third of the modules wrong by 10 (a debug build, another machine), a third unknown."""
    factor = rng.choice((1.0, 1.0, 0.1, 10.0, None, None))
    return [
        replace(test, estimate_s=None if test.estimate_s is None or factor is None else test.estimate_s * factor)
        for test in module
    ]


def _lonely(rng: random.Random, module: list[Test]) -> list[Test]:
    """Give some of the slow modules a label that one host has."""
    slow = sum(test.duration_s > 30 for test in module) * 4 > len(module) and rng.random() < 0.05
    return [replace(test, labels=frozenset({"gpu"}), hosts=1) for test in module] if slow else module


def _ants(rng: random.Random, module: list[Test]) -> list[Test]:
    """Make all tests take about 50 ms."""
    durations = [round(rng.lognormvariate(math.log(0.05), 0.4), 4) for _ in module]
    return [
        replace(
            test, duration_s=duration, estimate_s=test.estimate_s and duration, hosts=1, labels=test.labels & {"kvm"}
        )
        for test, duration in zip(module, durations, strict=True)
    ]


TWISTS: Final = {"first": _first, "wrong": _wrong, "lonely": _lonely, "ants": _ants}


def _events(
    rng: random.Random, hosts: tuple[Host, ...], deaths: int, crashes: int, span_s: float, tides: bool = False
) -> tuple[Event, ...]:
    """Spread the faults over the first part of the lower bound, the deaths over kinds of which others remain.

    That part ends early enough for the longest test to run again, if it can: else one late loss decides the makespan.
    With ``tides``, each host that dies comes back after a while, and each comes and goes up to three times.
    """
    until = max(0.3, min(0.9, 1 - 1.3 * LONGEST_S / span_s))
    kinds = Counter(host.kind for host in hosts)
    doomed = rng.sample([host for host in hosts if kinds[host.kind] >= 6], deaths)
    events = [Event(round(rng.uniform(0.1, until) * span_s, 3), "host-death", host.name, 0) for host in doomed]
    if tides:
        for host in doomed:
            edges = sorted(round(rng.uniform(0.05, until) * span_s, 3) for _ in range(6))
            kinds_in_turn: tuple[Literal["host-death"], Literal["host-return"]] = ("host-death", "host-return")
            events += [Event(at_s, kinds_in_turn[number % 2], host.name, 0) for number, at_s in enumerate(edges)]
        events = events[deaths:]
    for _ in range(crashes):
        at_s = round(rng.uniform(0.05, until) * span_s, 3)
        events.append(Event(at_s, "worker-crash", rng.choice(hosts).name, rng.randrange(64)))
    return tuple(sorted(events, key=lambda event: event.at_s))


def bounds(workload: Workload) -> dict[str, float]:
    """Return lower bounds in s for the makespan T of every schedule that keeps the rules, by what binds.

    work: take some sets of labels and all tests T' that have one of them and need at least m MiB. Only the hosts H'
        with m that have all labels of one of the sets can run them. A test that holds ``need`` of a resource on a host
        of speed s does so for at least ``duration / s`` (its speed is that of its slowest host), on each of its hosts.
        So sum over T' of (hosts * need * duration) <= sum over H' of (capacity * speed * seconds alive until T), for
        slots, cpus and memory, for all m and all choices of sets that occur.
    templates: as work on slots over all tests; but nothing runs on a host before its first template is made, so a
        host gives slots * max(0, speed * T - shortest template) only. A guest whose tests come to W slot seconds needs
        n templates with n * max over hosts of (slots * (speed * T - template)) >= W, and n >= the hosts of its widest
        test. Each of them, the first of a host too, holds a slot for at least (template - shortest) outside the time
        that was left out. T is the smallest time that satisfies this (found by bisection).
    longest: a test and the template that it needs come one after the other, at best on the fastest of its hosts.

    Crashes only take capacity away, and a lost test runs in full again, so the bounds hold with them. What a fault
    costs at least depends on the schedule: `after_losses` says it for a run that was.
    """
    found = {"work": 0.0, "longest": 0.0, "templates": 0.0}
    label_sets = sorted({test.labels for test in workload.tests}, key=sorted)
    for chosen in (some for size in range(1, len(label_sets) + 1) for some in combinations(label_sets, size)):
        for least in {0} | {test.memory_mib for test in workload.tests}:
            tests = [test for test in workload.tests if test.labels in chosen and least <= test.memory_mib]
            hosts = [host for host in workload.hosts if least <= host.memory_mib and _has_one(host, chosen)]
            for resource in ("slots", "cpus", "memory_mib"):
                use = sum(test.hosts * test.duration_s * getattr(test, resource, 1) for test in tests)  # one slot each
                capacity = [(host, getattr(host, resource) * host.speed) for host in hosts]
                if _given(workload, capacity, found["work"]) < use:
                    found["work"] = _reach(workload, capacity, use)
    for labels in label_sets:
        speeds = sorted((host.speed for host in workload.hosts if labels <= host.labels), reverse=True)
        for test in (test for test in workload.tests if test.labels == labels):
            alone = (test.duration_s + workload.guests[test.guest]) / speeds[test.hosts - 1] + workload.latency_s
            found["longest"] = max(found["longest"], alone)
    low, high = 0.0, 1e7
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (low, middle) if _templates_fit(workload, middle) else (middle, high)
    return {**found, "templates": low}


def _has_one(host: Host, label_sets: tuple[frozenset[str], ...]) -> bool:
    return any(labels <= host.labels for labels in label_sets)


def _alive_s(workload: Workload, span_s: float) -> dict[str, float]:
    """Return the lifetime of each host that dies, up to span_s."""
    lived: dict[str, float] = {}
    for event in (event for event in workload.events if event.kind != "worker-crash" and event.at_s < span_s):
        sign = -1 if event.kind == "host-death" else 1
        lived[event.host] = lived.get(event.host, span_s) + sign * (span_s - event.at_s)
    return lived


def _given(workload: Workload, capacity: list[tuple[Host, float]], span_s: float) -> float:
    lived = _alive_s(workload, span_s)
    return sum(amount * lived.get(host.name, span_s) for host, amount in capacity)


def _reach(workload: Workload, capacity: list[tuple[Host, float]], use: float) -> float:
    low, high = 0.0, 1e7
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (low, middle) if _given(workload, capacity, middle) >= use else (middle, high)
    return low


def _templates_fit(workload: Workload, span_s: float) -> bool:
    guests = {test.guest: workload.guests[test.guest] for test in workload.tests}
    shortest, lived = min(guests.values()), _alive_s(workload, span_s)
    free = sum(host.slots * max(0.0, host.speed * lived.get(host.name, span_s) - shortest) for host in workload.hosts)
    use = 0.0
    for guest, template_s in guests.items():
        tests = [test for test in workload.tests if test.guest == guest]
        most = max(host.slots * (host.speed * span_s - template_s) for host in workload.hosts)
        if most <= 0:
            return False
        work = sum(test.hosts * test.duration_s for test in tests)
        use += work + (template_s - shortest) * max(math.ceil(work / most), max(test.hosts for test in tests))
    return use <= free


def after_losses(workload: Workload, lost: list[tuple[float, int]]) -> float:
    """Return the time that no run with these losses (when, index of the test) can beat: each runs again in full."""
    ends = [lower_bound(workload)]
    for at_s, index in lost:
        test = workload.tests[index]
        speeds = sorted((host.speed for host in workload.hosts if test.labels <= host.labels), reverse=True)
        ends.append(at_s + test.duration_s / speeds[test.hosts - 1])
    return max(ends)


def lower_bound(workload: Workload) -> float:
    """Return a time in s that no schedule can beat: the largest of `bounds`, which has the derivation."""
    return max(bounds(workload).values())


if __name__ == "__main__":
    chosen = make(sys.argv[1], int(sys.argv[2]))
    print(f"{len(chosen.hosts)} hosts, {sum(host.slots for host in chosen.hosts)} slots, {len(chosen.tests)} tests")
    print({name: round(value, 2) for name, value in bounds(chosen).items()}, f"{len(chosen.events)} events")
