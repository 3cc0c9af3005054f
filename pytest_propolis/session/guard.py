"""Errors of this plugin's own hooks: they are reported at the end, and never end the session or lose a result."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from .stash import GUARD

__all__ = ["Guard", "guarded"]

SHOWN: Final = 3
"""How many errors the summary shows in full: a defect that occurs for each test is the same each time."""


class Guard:
    """Collects the errors of hooks that pytest calls outside a test's own phases."""

    def __init__(self) -> None:
        self._errors: list[tuple[str, str]] = []

    @contextmanager
    def during(self, purpose: str) -> Iterator[None]:
        """Run the block, and record an error in it. Interruptions and pytest's own outcomes propagate."""
        try:
            yield
        except (pytest.UsageError, pytest.exit.Exception):
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                raise
            # Before Python 3.12, an interruption during the creation of a class, as in an import, is the cause of
            # another error.
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise error.__cause__ from None
            self._errors.append((purpose, "".join(traceback.format_exception(error)).rstrip()))

    def summary(self) -> Iterator[str]:
        """Return lines for the terminal; none if there were no errors."""
        for purpose, text in self._errors[:SHOWN]:
            yield f"error while {purpose}; the tests' own results stand:"
            yield from (f"  {line}" for line in text.splitlines())
        if len(self._errors) > SHOWN:
            yield f"... and {len(self._errors) - SHOWN} further errors of this kind"


@contextmanager
def guarded(config: pytest.Config, purpose: str) -> Iterator[None]:
    """Run the block of a hook; an error in it ends neither the session nor the hook's other work.

    :param purpose: what the block does, as in "describing the VMs of a failed test".
    """
    with config.stash.setdefault(GUARD, Guard()).during(purpose):
        yield
