"""A command line of this machine's shell as one for the guest's."""

from __future__ import annotations

import shlex

__all__ = ["command_line"]


def command_line(words: tuple[str, ...]) -> str:
    """One word is a line for the guest's shell; several are a program and its arguments.

    A ``--`` before them is left out: the parser leaves one that comes after another argument.
    """
    words = words[1:] if words[0] == "--" else words
    return words[0] if len(words) == 1 else shlex.join(words)
