"""Guests by name."""

from __future__ import annotations

from typing import ClassVar

import pytest

from pytest_propolis.console.console import Console
from pytest_propolis.errors import ConfigError, UnknownGuest
from pytest_propolis.guests.adapter import GuestAdapter, GuestImage
from pytest_propolis.guests.registry import GuestRegistry


class Other(GuestAdapter):
    name: ClassVar[str] = "other"
    image: ClassVar[GuestImage] = GuestImage()

    async def log_in(self, console: Console) -> None: ...


class SecondMicro(Other):
    name: ClassVar[str] = "micro"


def test_the_built_in_guests_are_there_and_those_of_plugins_too() -> None:
    other = Other()
    registry = GuestRegistry([other])
    assert set(registry.adapters) >= {"alpine", "debian", "micro", "other"}
    assert registry.get("other") is other
    assert registry.get("micro").name == "micro"


def test_an_unknown_guest_is_named_with_the_nearest_and_all_there_are() -> None:
    all_there_are = f"there are: {', '.join(sorted(GuestRegistry().adapters))}"
    with pytest.raises(UnknownGuest, match="there is no guest named 'alpin'") as caught:
        GuestRegistry().get("alpin")
    assert caught.value.hint == f"did you mean 'alpine'? {all_there_are}"
    with pytest.raises(UnknownGuest) as caught:
        GuestRegistry().get("windows-11")
    assert caught.value.hint == all_there_are


def test_two_guests_of_one_name_are_refused_with_both_classes() -> None:
    with pytest.raises(ConfigError, match="two guest adapters are named 'micro': Micro and SecondMicro"):
        GuestRegistry([SecondMicro()])


def test_the_adapters_cannot_be_changed_from_outside() -> None:
    with pytest.raises(TypeError):
        GuestRegistry().adapters["x"] = Other()  # type: ignore[index]
