"""The registry of guests, by name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ..errors import ConfigError, UnknownGuest
from .adapter import GuestAdapter

__all__ = ["GuestRegistry"]

BUILT_IN: Final = {"alpine": "Alpine", "debian": "Debian", "micro": "Micro"}
"""The class of each built-in guest, in the module of its name. Most runs use one of them, and import no other."""


class GuestRegistry:
    """Adapters by name: the built-in ones, and those from other plugins.

    :raises ConfigError: if two have the same name.
    """

    def __init__(self, others: Iterable[GuestAdapter] = ()) -> None:
        self._adapters: dict[str, GuestAdapter] = {}
        classes = dict(BUILT_IN)
        for adapter in others:
            if adapter.name in classes:
                raise ConfigError(
                    f"two guest adapters are named {adapter.name!r}:"
                    f" {classes[adapter.name]} and {type(adapter).__qualname__}",
                    hint="rename the one of your own",
                )
            self._adapters[adapter.name] = adapter
            classes[adapter.name] = type(adapter).__qualname__
        self._names = tuple(classes)

    @property
    def adapters(self) -> Mapping[str, GuestAdapter]:
        return MappingProxyType({name: self.get(name) for name in self._names})

    def get(self, name: str) -> GuestAdapter:
        """Return the adapter of that name.

        :raises UnknownGuest: if there is none, listing the available names.
        """
        if name in BUILT_IN and name not in self._adapters:
            self._adapters[name] = getattr(importlib.import_module(f"{__package__}.{name}"), BUILT_IN[name])()
        if adapter := self._adapters.get(name):
            return adapter
        close = difflib.get_close_matches(name, self._names, n=1)
        raise UnknownGuest(
            f"there is no guest named {name!r}",
            hint=(f"did you mean {close[0]!r}? " if close else "") + f"there are: {', '.join(sorted(self._names))}",
        )
