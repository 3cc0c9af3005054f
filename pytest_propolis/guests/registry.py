"""The registry of guests, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ..errors import ConfigError, UnknownGuest
from .adapter import GuestAdapter
from .alpine import Alpine
from .debian import Debian
from .micro import Micro

__all__ = ["GuestRegistry"]


class GuestRegistry:
    """Adapters by name: the built-in ones, and those from other plugins.

    :raises ConfigError: if two have the same name.
    """

    def __init__(self, others: Iterable[GuestAdapter] = ()) -> None:
        self._adapters: dict[str, GuestAdapter] = {}
        for adapter in (Alpine(), Debian(), Micro(), *others):
            if adapter.name in self._adapters:
                raise ConfigError(
                    f"two guest adapters are named {adapter.name!r}:"
                    f" {type(self._adapters[adapter.name]).__qualname__} and {type(adapter).__qualname__}",
                    hint="rename the one of your own",
                )
            self._adapters[adapter.name] = adapter

    @property
    def adapters(self) -> Mapping[str, GuestAdapter]:
        return MappingProxyType(self._adapters)

    def get(self, name: str) -> GuestAdapter:
        """Return the adapter of that name.

        :raises UnknownGuest: if there is none, listing the available names.
        """
        if adapter := self._adapters.get(name):
            return adapter
        close = difflib.get_close_matches(name, self._adapters, n=1)
        raise UnknownGuest(
            f"there is no guest named {name!r}",
            hint=(f"did you mean {close[0]!r}? " if close else "") + f"there are: {', '.join(sorted(self._adapters))}",
        )
