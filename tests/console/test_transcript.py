"""The transcript of a console: waits for past and future output."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_propolis.console.transcript import KEPT_CHARACTERS, Found, Transcript
from pytest_propolis.errors import ConsoleClosed


async def waiting(transcript: Transcript, *patterns: str | re.Pattern[str]) -> list[asyncio.Task[object]]:
    """Tasks that have begun to wait."""
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(transcript.wait_for(pattern)) for pattern in patterns]
    await asyncio.sleep(0)
    return tasks


async def show(transcript: Transcript, text: str) -> None:
    """Append text, and let its waiters run."""
    transcript.append(text)
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_wait_ends_with_the_text_and_what_came_before_it() -> None:
    transcript = Transcript()
    wait = asyncio.create_task(transcript.wait_for("login: "))
    await asyncio.sleep(0)
    for chunk in ("Welcome\nlo", "calhost lo", "gin", ": "):
        assert not wait.done()
        transcript.append(chunk)
    found = await wait
    assert (found.before, found.text, found.groups) == ("Welcome\nlocalhost ", "login: ", ())


async def test_a_string_is_no_regular_expression() -> None:
    transcript = Transcript()
    (wait,) = await waiting(transcript, "[a-z]+ (x)")
    await show(transcript, "abc x")
    assert not wait.done()
    await show(transcript, "[a-z]+ (x)")
    await wait


async def test_a_regular_expression_gives_its_groups() -> None:
    transcript = Transcript()
    await show(transcript, "Linux version 6.18.1\n")
    found = await transcript.wait_for(re.compile(r"version (\d+)\.(\d+)(-rc\d)?"))
    assert (found.before, found.text, found.groups) == ("Linux ", "version 6.18", ("6", "18", None))


async def test_a_pattern_that_ends_in_a_number_matches_as_much_of_it_as_has_come() -> None:
    transcript = Transcript()
    (open_ended, closed) = await waiting(transcript, re.compile(r"tests: (\d+)"), re.compile(r"tests: (\d+)\n"))
    await show(transcript, "tests: 1")
    assert await open_ended == Found(before="", text="tests: 1", groups=("1",))
    assert not closed.done()
    await show(transcript, "2\n")
    assert await closed == Found(before="", text="tests: 12\n", groups=("12",))


async def test_the_start_of_a_wait_is_no_start_of_a_line() -> None:
    transcript = Transcript()
    await show(transcript, "one two\n")
    await transcript.wait_for("one ")
    (wait,) = await waiting(transcript, re.compile(r"^two", re.MULTILINE))
    await show(transcript, "three\n")
    assert not wait.done()
    await show(transcript, "two\n")
    await wait


async def test_text_that_came_before_the_wait_counts_once() -> None:
    transcript = Transcript()
    await show(transcript, "ready\n")
    await transcript.wait_for("ready")
    (wait,) = await waiting(transcript, "ready")
    assert not wait.done()
    await show(transcript, "ready")
    await wait


async def test_text_before_a_skip_does_not_count() -> None:
    transcript = Transcript()
    await show(transcript, "ready\n")
    transcript.skip()
    (wait,) = await waiting(transcript, "ready")
    await show(transcript, "rea")
    assert not wait.done()
    await show(transcript, "dy")
    await wait


async def test_concurrent_waits_each_see_all_the_text() -> None:
    transcript = Transcript()
    tasks = await waiting(transcript, "two", "one", re.compile("t.*o"), "one", "three")
    await show(transcript, "one two")
    assert [task.done() for task in tasks] == [True, True, True, True, False]
    await show(transcript, " three")
    await asyncio.gather(*tasks)


async def test_the_cursor_never_goes_back() -> None:
    transcript = Transcript()
    tasks = await waiting(transcript, "late", "early")
    await show(transcript, "early late")
    await asyncio.gather(*tasks)
    assert transcript.cursor == len("early late")


async def test_a_cancelled_wait_leaves_the_others_alone() -> None:
    transcript = Transcript()
    first, second = await waiting(transcript, "word", "word")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await show(transcript, "word")
    await second
    assert first.cancelled()


async def test_a_failure_ends_all_waits_and_later_ones() -> None:
    transcript = Transcript()
    tasks = await waiting(transcript, "one", re.compile("two"))
    await show(transcript, "seen")
    transcript.fail(ConsoleClosed("gone"))
    for task in tasks:
        with pytest.raises(ConsoleClosed):
            await task
    with pytest.raises(ConsoleClosed):
        await transcript.wait_for("one")


async def test_text_that_came_before_the_failure_still_counts() -> None:
    transcript = Transcript()
    await show(transcript, "last words")
    transcript.fail(ConsoleClosed("gone"))
    assert (await transcript.wait_for("words")).before == "last "


async def test_a_future_can_fail_with_the_console() -> None:
    transcript = Transcript()
    loop = asyncio.get_running_loop()
    pending, done, late = loop.create_future(), loop.create_future(), loop.create_future()
    transcript.on_failure(pending)
    transcript.on_failure(done)
    done.set_result(1)
    transcript.fail(ConsoleClosed("gone"))
    transcript.on_failure(late)
    assert done.result() == 1
    for future in (pending, late):
        with pytest.raises(ConsoleClosed):
            await future


async def test_old_text_is_dropped_and_positions_stay_absolute() -> None:
    transcript = Transcript()
    await show(transcript, "old\n")
    (wait,) = await waiting(transcript, "needle")
    for n in range(8):
        transcript.append(f"{n}" * (KEPT_CHARACTERS // 4))
    assert transcript.end == 4 + 2 * KEPT_CHARACTERS
    assert len(transcript.since(0)) <= KEPT_CHARACTERS * 3 // 2
    assert transcript.since(transcript.end - 3) == "777"
    await show(transcript, "needle")
    await wait
    assert transcript.cursor == transcript.end


async def test_the_tail_is_the_last_lines_without_empty_ones_at_the_end() -> None:
    transcript = Transcript()
    await show(transcript, "one\ntwo\n\nthree\n\n\n")
    assert transcript.tail(3) == ("two", "", "three")
    assert transcript.tail(30) == ("one", "two", "", "three")


@given(st.text("ab", max_size=30), st.text("ab", min_size=1, max_size=3), st.data())
def test_what_a_wait_finds_does_not_depend_on_chunks(text: str, pattern: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))

    async def find() -> object:
        transcript = Transcript()
        (wait,) = await waiting(transcript, pattern)
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            await show(transcript, text[start:end])
        if wait.done():
            found = await wait
            return found.before, transcript.cursor  # type: ignore[attr-defined]
        wait.cancel()
        await asyncio.gather(wait, return_exceptions=True)
        return None

    place = text.find(pattern)
    assert asyncio.run(find()) == (None if place < 0 else (text[:place], place + len(pattern)))


def test_a_tail_leaves_out_what_is_hidden_and_waits_do_not() -> None:
    transcript = Transcript()
    transcript.append("one\n# ")
    start = transcript.end
    transcript.append("typed\ntwice\n")
    transcript.hide(start)
    transcript.append("two\nthree")
    assert transcript.tail(9) == ("one", "# ", "two", "three")
    assert transcript.tail(2) == ("two", "three")
    assert transcript.since(start).startswith("typed")


def test_a_tail_may_have_several_hidden_stretches_and_end_in_one() -> None:
    transcript = Transcript()
    for text, hidden in (("a\n", False), ("b\n", True), ("c\n", False), ("d\n", True)):
        start = transcript.end
        transcript.append(text)
        if hidden:
            transcript.hide(start)
    assert transcript.tail(9) == ("a", "c")


def test_a_tail_has_what_comes_from_elsewhere_where_it_came_and_waits_do_not() -> None:
    transcript = Transcript()
    transcript.append("booting\n# ")
    transcript.append_other("out")
    transcript.append_other("put\n")
    transcript.append("[ 1.0] a kernel message\n")
    transcript.append_other("more")
    assert transcript.tail(9) == ("booting", "# ", "output", "[ 1.0] a kernel message", "more")
    assert transcript.tail(2) == ("[ 1.0] a kernel message", "more")
    assert transcript.since(0) == "booting\n# [ 1.0] a kernel message\n"


def test_the_tail_of_much_output_from_elsewhere_ends_with_the_last_lines() -> None:
    transcript = Transcript()
    for number in range(100_000):
        transcript.append_other(f"{number}\n")
    assert transcript.tail(2) == ("99998", "99999")
