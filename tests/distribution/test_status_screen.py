"""The status of a run on terminals of any width."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pytest_propolis.distribution.status.screen import cells, run_lines
from pytest_propolis.distribution.status.snapshot import HostStatus, RunningTest, Snapshot, TemplateStatus, WaitingTests

NOW_S = 1000.0

words = st.text(max_size=30)
numbers = st.integers(0, 10**6)
hosts = st.builds(
    HostStatus,
    name=words,
    slots=numbers,
    used=numbers,
    memory_mib=numbers,
    used_memory_mib=numbers,
    cpus=numbers,
    used_cpus=numbers,
    state=st.sampled_from(["up", "lost"]),
    templates=st.lists(words, max_size=3).map(tuple),
    making=st.lists(st.builds(TemplateStatus, guest=words, since=st.just(990.0)), max_size=2).map(tuple),
)
running = st.builds(
    RunningTest, test=words, worker=words, hosts=st.lists(words, max_size=2).map(tuple), since=st.floats(0, NOW_S)
)
waiting = st.builds(WaitingTests, reason=words, count=numbers, tests=st.tuples(words))


def snapshot(**given: object) -> Snapshot:
    values: dict[str, object] = {"run": "1", "process": {}, "directory": "/d", "at": NOW_S, "since": 900.0}
    values |= {"state": "running", "tests": 9, "finished": 2, "failed": 0, "forks": 4, "forks_per_s": 0.5}
    values |= {"running": (), "waiting": (), "hosts": ()}
    return Snapshot(**{**values, **given})  # type: ignore[arg-type]


def host(name: str = "h1", **given: object) -> HostStatus:
    values: dict[str, object] = {"slots": 2, "used": 1, "memory_mib": 4096, "used_memory_mib": 512}
    values |= {"cpus": 8, "used_cpus": 2}
    return HostStatus(name=name, **{**values, **given})  # type: ignore[arg-type]


def shown(status: Snapshot, width: int = 100) -> list[str]:
    return list(run_lines(status, width=width, now_s=NOW_S))


@given(
    width=st.integers(1, 150),
    hosts=st.lists(hosts, max_size=3),
    running=st.lists(running, max_size=3),
    waiting=st.lists(waiting, max_size=3),
    directory=words,
)
def test_no_line_is_wider_than_the_terminal_or_has_control_characters(
    width: int,
    hosts: list[HostStatus],
    running: list[RunningTest],
    waiting: list[WaitingTests],
    directory: str,
) -> None:
    status = snapshot(hosts=tuple(hosts), running=tuple(running), waiting=tuple(waiting), directory=directory)
    for line in shown(status, width):
        assert cells(line) <= width
        assert not any(unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") for character in line)


def test_hosts_with_their_slots_and_templates_come_first() -> None:
    making = (TemplateStatus(guest="debian", since=NOW_S - 70),)
    first, *rest = shown(snapshot(hosts=(host(), host("gone", state="lost"), host("h3", making=making))))
    assert first == "2/9 tests, 1m40s, 0.5 forks/s, pid 1 in /d"
    assert rest == [
        "  h1    1/2 slots, 512/4096 MiB",
        "  gone  lost",
        "  h3    1/2 slots, 512/4096 MiB, making debian for 1m10s",
    ]


def test_the_test_that_has_run_longest_comes_first_and_its_end_is_seen_on_a_narrow_terminal() -> None:
    tests = (
        RunningTest(test="tests/test_it.py::test_b", worker="gw1", hosts=("h1", "h2"), since=NOW_S - 3),
        RunningTest(test="tests/test_it.py::test_a", worker="gw0", hosts=("h3",), since=NOW_S - 7300),
    )
    assert shown(snapshot(running=tests))[1:] == [
        "running",
        "  2h01m  h3     gw0  tests/test_it.py::test_a",
        "  3s     h1,h2  gw1  tests/test_it.py::test_b",
    ]
    assert shown(snapshot(running=tests), 20)[2] == "  2h01m  …py::test_a"


def test_what_waits_is_counted_by_reason() -> None:
    waits = (
        WaitingTests(reason="held", count=1, tests=("a",)),
        WaitingTests(reason="no slot is free", count=40, tests=("b", "c")),
    )
    assert shown(snapshot(waiting=waits))[1:] == ["waiting: 41", "    40  no slot is free", "     1  a: held"]


def test_a_character_of_two_cells_counts_as_two() -> None:
    assert shown(snapshot(directory="測試" * 60), 80)[0].endswith("測…")
