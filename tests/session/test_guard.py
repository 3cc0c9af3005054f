"""The guard that keeps errors of this plugin from ending the session."""

from __future__ import annotations

import contextlib

import pytest

from pytest_propolis.session.guard import Guard


def test_an_error_is_remembered_and_an_interruption_goes_through() -> None:
    guard = Guard()
    for error in (ValueError("a defect"), KeyboardInterrupt()):
        with contextlib.suppress(KeyboardInterrupt), guard.during("looking"):
            raise error
    summary = list(guard.summary())
    assert summary[0].startswith("error while looking")
    assert summary[-1].endswith("ValueError: a defect")


def test_an_interruption_in_the_middle_of_a_class_goes_through() -> None:
    class Interrupted:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Guard().during("importing"):
        type("Made", (), {"field": Interrupted()})
