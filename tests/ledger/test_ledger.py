"""The ledger: the contents on disk after each step, whatever happened to the last write."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_propolis.errors import AgentError
from pytest_propolis.ledger import ledger as ledger_module
from pytest_propolis.ledger.entry import Entry, Owner
from pytest_propolis.ledger.identity import ProcessIdentity
from pytest_propolis.ledger.ledger import Ledger, read_ledger

ME = ProcessIdentity.current()
OWNER = Owner("gw0", ME)


@dataclass
class SyncCount:
    count: int = 0

    def take(self) -> int:
        taken, self.count = self.count, 0
        return taken


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> SyncCount:
    """Counts the real syncs."""
    counter = SyncCount()
    real: Callable[[int], None] = ledger_module._data_sync

    def counting(descriptor: int) -> None:
        counter.count += 1
        real(descriptor)

    monkeypatch.setattr(ledger_module, "_data_sync", counting)
    return counter


def on_disk(path: Path) -> list[Entry]:
    return list(read_ledger(path).entries.values())


def test_the_header_says_who_writes(path: Path) -> None:
    before = time.time()
    with Ledger.open(path, run="r1"):
        header = read_ledger(path).header
    assert header.agent == ProcessIdentity.current()
    assert header.run == "r1"
    assert re.fullmatch(re.escape(header.run) + r"\.[0-9a-f]{32}", header.tag)
    assert before <= header.since <= time.time()


def test_the_file_is_for_its_user_alone(path: Path) -> None:
    with Ledger.open(path, run="r"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_intent_is_on_disk_when_the_call_returns(path: Path) -> None:
    with Ledger.open(path, run="r1") as ledger:
        entry = ledger.intend("directory", {"path": "/somewhere"}, OWNER)
        assert on_disk(path) == [entry]
    assert (entry.kind, entry.what, entry.owner, entry.run) == ("directory", {"path": "/somewhere"}, OWNER, "r1")
    assert not entry.is_live


def test_ids_carry_the_runs_mark_and_differ(path: Path) -> None:
    with Ledger.open(path, run="r") as ledger:
        ids = {ledger.intend("file", {}, OWNER).id for _ in range(20)}
        assert len(ids) == 20
        assert all(text.startswith(ledger.header.tag + "-") for text in ids)


def test_facts_known_only_later_are_added_when_it_lives(path: Path) -> None:
    with Ledger.open(path, run="r") as ledger:
        intent = ledger.intend("process", {"name": "qemu"}, OWNER)
        entry = ledger.live(intent, **ME.facts())
        assert entry.is_live
        assert entry.what["name"] == "qemu"
        assert ProcessIdentity.from_facts(entry.what) == ME
        assert on_disk(path) == ledger.entries() == [entry]


def test_what_is_gone_is_no_longer_listed(path: Path) -> None:
    with Ledger.open(path, run="r") as ledger:
        first, second = ledger.intend_many([("file", {"path": "/a"}, OWNER), ("file", {"path": "/b"}, OWNER)])
        ledger.gone(first)
        ledger.gone(first)
        assert on_disk(path) == ledger.entries() == [second]


def test_entries_stay_in_the_order_of_their_intents(path: Path) -> None:
    with Ledger.open(path, run="r") as ledger:
        entries = [ledger.intend("file", {"path": f"/{number}"}, OWNER) for number in range(5)]
        for entry in reversed(entries):
            ledger.live(entry)
        assert [entry.id for entry in on_disk(path)] == [entry.id for entry in entries]


def test_keeping_is_on_disk_with_its_reason_and_its_end(path: Path) -> None:
    with Ledger.open(path, run="r") as ledger:
        for_good = ledger.keep(ledger.intend("file", {}, OWNER), None, reason="test failed")
        for_a_while = ledger.keep(ledger.intend("file", {}, OWNER), 1000.0, reason="test failed")
        assert on_disk(path) == [for_good, for_a_while]
    assert for_good.kept
    assert for_good.kept.reason == "test failed"
    assert for_good.is_kept(now=1e12)
    assert for_a_while.is_kept(now=999.0)
    assert not for_a_while.is_kept(now=1000.0)


def test_many_intents_cost_one_sync(path: Path, syncs: SyncCount) -> None:
    with Ledger.open(path, run="r") as ledger:
        syncs.take()
        entries = ledger.intend_many([("file", {"path": f"/{number}"}, OWNER) for number in range(50)])
        assert syncs.take() == 1
        ledger.live(entries[0])
        assert syncs.take() == 1


def test_gone_is_synced_only_when_asked(path: Path, syncs: SyncCount) -> None:
    with Ledger.open(path, run="r") as ledger:
        first, second, third = ledger.intend_many([("file", {}, OWNER)] * 3)
        syncs.take()
        ledger.gone(first)
        assert syncs.take() == 0
        ledger.gone(second, third, sync=True)
        assert syncs.take() == 1


def test_texts_of_any_language_and_line_ends_survive(path: Path) -> None:
    with Ledger.open(path, run="ä\nö") as ledger:
        entry = ledger.intend("file", {"path": "/some/a\nb\r\u2028ß\x00"}, Owner("wörker\n"))
        assert on_disk(path) == [entry]


def test_a_kind_that_nobody_knows_is_read(path: Path) -> None:
    with Ledger.open(path, run="r") as ledger:
        entry = ledger.intend("wormhole", {"name": "x"}, OWNER)
        assert on_disk(path) == [entry]


def transitions(ledger: Ledger) -> dict[str, Callable[[], object]]:
    entry, other = ledger.intend_many([("file", {"path": "/a"}, OWNER), ("process", {"name": "b"}, OWNER)])
    return {
        "intent": lambda: ledger.intend("file", {"path": "/ü"}, OWNER),
        "live": lambda: ledger.live(other, pid="1"),
        "keep": lambda: ledger.keep(entry, 5.0, reason="why"),
        "gone": lambda: ledger.gone(entry),
    }


@pytest.mark.parametrize("transition", ["intent", "live", "keep", "gone"])
def test_a_line_torn_anywhere_is_as_if_never_written_and_can_be_written_over(path: Path, transition: str) -> None:
    with Ledger.open(path, run="r") as ledger:
        step = transitions(ledger)[transition]
        before, intact = ledger.entries(), path.read_bytes()
        step()
        after, whole = ledger.entries(), path.read_bytes()
    assert on_disk(path) == after != before
    for length in range(len(intact), len(whole)):
        path.write_bytes(whole[:length])
        assert on_disk(path) == before
        with Ledger.adopt(path) as ledger:
            assert path.read_bytes() == whole[:length], "adopting alone changes nothing"
            entry = ledger.intend("file", {"path": "/next"}, OWNER)
        assert on_disk(path) == [*before, entry]
        assert read_ledger(path).damaged == 0


def test_a_short_line_after_a_long_torn_one_leaves_nothing_of_it(path: Path) -> None:
    with Ledger.open(path, run="r") as ledger:
        entry = ledger.intend("file", {}, OWNER)
    with path.open("ab") as file:
        file.write(b'{"to":"intent","entry":{"what":"' + b"x" * 1000)
    with Ledger.adopt(path) as ledger:
        ledger.gone(entry)
    assert path.read_bytes().endswith(b"}\n")
    assert on_disk(path) == []


def test_a_torn_header_is_no_ledger(path: Path) -> None:
    with Ledger.open(path, run="r"):
        header = path.read_bytes()
    for length in range(len(header)):
        path.write_bytes(header[:length])
        with pytest.raises(AgentError, match="no readable header"):
            read_ledger(path)


def test_damage_in_the_middle_costs_only_its_own_lines(path: Path) -> None:
    with Ledger.open(path, run="r") as ledger:
        first = ledger.intend("file", {"path": "/a"}, OWNER)
        lost = ledger.intend("file", {"path": "/b"}, OWNER)
        ledger.live(lost)
        last = ledger.intend("file", {"path": "/c"}, OWNER)
    lines = path.read_bytes().split(b"\n")
    lines[2] = b"\x00" * len(lines[2])
    path.write_bytes(b"\n".join(lines))
    contents = read_ledger(path)
    assert list(contents.entries.values()) == [first, last]
    assert contents.damaged == 2, "the intent, and the live that has lost it"


def test_a_newer_format_is_refused_with_what_to_do(path: Path) -> None:
    path.write_bytes(b'{"version":99,"agent":"of a shape that is not known"}\n')
    with pytest.raises(AgentError, match="format 99") as caught:
        read_ledger(path)
    assert caught.value.hint


def test_fields_added_later_are_ignored(path: Path) -> None:
    with Ledger.open(path, run="r") as ledger:
        entry = ledger.intend("file", {}, OWNER)
    header, line, _ = path.read_bytes().split(b"\n")
    richer = msgspec.json.encode(msgspec.json.decode(line) | {"colour": "blue"})
    path.write_bytes(header + b"\n" + richer + b"\n")
    assert on_disk(path) == [entry]


def test_there_is_one_ledger_under_a_name(path: Path) -> None:
    with Ledger.open(path, run="r"):
        content = path.read_bytes()
        with pytest.raises(AgentError, match="File exists"):
            Ledger.open(path, run="r")
        assert path.read_bytes() == content


def test_a_ledger_without_a_directory_names_it(path: Path) -> None:
    with pytest.raises(AgentError, match="no-such/ledger"):
        Ledger.open(path.parent / "no-such" / "ledger.jsonl", run="r")


def test_an_open_ledger_cannot_be_adopted(path: Path) -> None:
    with Ledger.open(path, run="r"), pytest.raises(AgentError, match="living agent or another reaper"):
        Ledger.adopt(path)
    Ledger.adopt(path).close()


def test_a_closed_ledger_says_so(path: Path) -> None:
    ledger = Ledger.open(path, run="r")
    ledger.close()
    ledger.close()
    with pytest.raises(AgentError, match="is closed"):
        ledger.intend("file", {}, OWNER)


@pytest.mark.parametrize("step", ["live", "keep"])
def test_what_is_gone_cannot_come_back(path: Path, step: str) -> None:
    with Ledger.open(path, run="r") as ledger:
        entry = ledger.intend("file", {}, OWNER)
        ledger.gone(entry)
        content = path.read_bytes()
        with pytest.raises(AgentError, match=entry.id):
            ledger.live(entry) if step == "live" else ledger.keep(entry, None, reason="")
        assert path.read_bytes() == content


def test_an_owner_on_another_host_cannot_be_told_dead() -> None:
    assert Owner("remote").is_alive()
    assert OWNER.is_alive()
    assert not Owner("gw1", ProcessIdentity(1, 0, "another boot")).is_alive()


steps = st.lists(
    st.tuples(st.sampled_from(["intend", "live", "keep", "gone", "adopt"]), st.integers(0, 7)), max_size=25
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_the_file_always_says_what_the_ledger_says(steps: list[tuple[str, int]], tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.unlink(missing_ok=True)
    ledger = Ledger.open(path, run="r")
    for step, number in steps:
        entries = ledger.entries()
        if step == "adopt":
            ledger.close()
            ledger = Ledger.adopt(path)
        elif step == "intend":
            ledger.intend_many([("file", {"path": f"/{n}"}, OWNER) for n in range(number)])
        elif entries:
            entry = entries[number % len(entries)]
            if step == "live":
                ledger.live(entry, number=str(number))
            elif step == "keep":
                ledger.keep(entry, float(number), reason=step)
            else:
                ledger.gone(entry)
        assert on_disk(path) == ledger.entries()
    ledger.close()
