"""Errors: their messages, and that they can be sent between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from pytest_propolis import errors
from pytest_propolis.agent_api.messages import Fault
from pytest_propolis.errors import ApiError, CommandFailed, ConsoleTimeout, PropolisError, VmError

CLASSES: list[type[PropolisError]] = [PropolisError, *PropolisError.kinds.values()]


def error_of(kind: type[PropolisError]) -> PropolisError:
    return kind(
        "it broke",
        hint="mend it",
        vm="one",
        operation="boot",
        waited_s=1.25,
        console_tail=("first", "second"),
        log_path="/logs/one.log",
    )


def test_all_classes_are_exported_and_drawn_in_the_tree() -> None:
    assert {kind.__name__ for kind in CLASSES} == set(errors.__all__)
    assert all(kind.__name__ in str(errors.__doc__) for kind in CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_survives_pickling(kind: type[PropolisError], protocol: int) -> None:
    error = error_of(kind)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_survives_copying(kind: type[PropolisError]) -> None:
    again = copy.deepcopy(error_of(kind))
    assert type(again) is kind
    assert str(again) == str(error_of(kind))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_shows_all_that_it_carries(kind: type[PropolisError]) -> None:
    text = str(error_of(kind))
    assert text.startswith("VM 'one': it broke")
    assert text.endswith(
        "  during: boot\n  waited: 1.2 s\n  last 2 lines of console:\n    | first\n    | second\n"
        "  log: /logs/one.log\n  hint: mend it"
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_a_long_line_of_console_is_abbreviated(kind: type[PropolisError]) -> None:
    error = kind("it broke", console_tail=("first", "x" * 200_000, "last"))
    assert "    | last" in str(error)
    assert len(str(error)) < 2_000


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_without_context_is_its_message(kind: type[PropolisError]) -> None:
    assert str(kind("it broke")).splitlines()[0].startswith("it broke")
    assert "None" not in str(kind("it broke"))


def test_the_particulars_of_an_api_error_survive_pickling() -> None:
    error = ApiError("no", status=403, error_code="HaltPending", request_id="r-1", vm="one")
    again = pickle.loads(pickle.dumps(error))
    assert (again.status, again.error_code, again.request_id) == (403, "HaltPending", "r-1")
    assert str(again) == "VM 'one': no (HTTP 403 [HaltPending])"


def test_a_failed_command_shows_the_last_thirty_lines_of_its_output() -> None:
    output = "".join(f"line {n}\n" for n in range(40)).encode() + b"\xff"
    error = pickle.loads(pickle.dumps(CommandFailed("it failed", command="false", status=1, output=output)))
    assert (error.command, error.status, error.output) == ("false", 1, output)
    lines = str(error).splitlines()
    assert lines[1] == "  output (41 lines, the last 30):"
    assert lines[2] == "    | line 11"
    assert lines[-1] == "    | \N{REPLACEMENT CHARACTER}"


def test_a_failed_command_without_output_says_so() -> None:
    assert str(CommandFailed("it failed")) == "it failed\n  output: none"


def test_context_is_filled_in_only_where_there_is_none() -> None:
    error = VmError("it broke", vm="one")
    assert error.with_context(vm="two", hint="mend it") is error
    assert (error.vm, error.hint) == ("one", "mend it")


@pytest.mark.parametrize("kind", PropolisError.kinds.values())
def test_an_error_comes_through_the_agent_as_the_same_class(kind: type[PropolisError]) -> None:
    error = Fault.of(error_of(kind)).to_error()
    assert type(error) is kind
    assert (error.message, error.hint, error.console_tail) == ("it broke", "mend it", ("first", "second"))


def test_errors_can_be_caught_by_family() -> None:
    with pytest.raises(errors.ConsoleError):
        raise ConsoleTimeout("nothing came")
    with pytest.raises(errors.ConfigError):
        raise errors.UnknownGuest("who?")
