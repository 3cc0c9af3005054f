"""Poison: the reason for which every wait of a group ends."""

from __future__ import annotations

from typing import Final

import msgspec

from ..errors import Poisoned

__all__ = ["POISON_KEY", "Poison"]

POISON_KEY: Final = "poison"
OUTPUT_LINES: Final = 30
LINE_CHARACTERS: Final = 1000


class Poison(msgspec.Struct, frozen=True, kw_only=True):
    """Why a group is poisoned.

    :param node: the node that failed or vanished; empty if it was poisoned by hand.
    :param output: the last lines that it wrote.
    """

    node: str = ""
    reason: str
    output: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return it as the value of a key, bounded."""
        lines = tuple(line[:LINE_CHARACTERS] for line in self.output[-OUTPUT_LINES:])
        return msgspec.json.encode(Poison(node=self.node, reason=self.reason[:4000], output=lines))

    @classmethod
    def decode(cls, value: bytes) -> Poison:
        """Return it from the value of a key; a value that is none of ours counts as a reason."""
        try:
            return msgspec.json.decode(value, type=cls)
        except msgspec.DecodeError:
            return cls(reason=value[:4000].decode(errors="replace"))

    def error(self, operation: str) -> Poisoned:
        """Return the error for a wait that it ends."""
        subject = f"node {self.node!r} " if self.node else "the group is poisoned: "
        return Poisoned(
            f"{subject}{self.reason}", node=self.node, reason=self.reason, output=self.output, operation=operation
        )
