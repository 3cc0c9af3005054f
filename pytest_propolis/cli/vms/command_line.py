"""A command line of this machine's shell as one for the guest's."""

from __future__ import annotations

import shlex

__all__ = ["command_line"]


def command_line(arguments: tuple[str, ...]) -> str:
    """One word is a line for the guest's shell; several are a program and its arguments.

    A ``--`` before them is left out: the parser leaves one that comes after another argument.
    """
    arguments = arguments[1:] if arguments[0] == "--" else arguments
    return arguments[0] if len(arguments) == 1 else shlex.join(arguments)
