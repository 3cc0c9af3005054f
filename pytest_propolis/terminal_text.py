"""Text of guests and programs as a person's terminal may show it."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["abbreviated", "printable"]

_LONGEST_LINE: Final = 400
_SEQUENCE: Final = r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
"""Not compiled with the module: most runs show no error, and compiling it takes as long as importing `errors`."""


def printable(line: str) -> str:
    """Return a line without control characters and escape sequences, abbreviated if it is long."""
    while (plain := re.sub(_SEQUENCE, "", line)) != line:  # removing one sequence may form another
        line = plain
    return abbreviated(line, _LONGEST_LINE)


def abbreviated(text: str, length: int) -> str:
    """Return a text without its middle if it is longer than a number of characters."""
    if len(text) <= length:
        return text
    return f"{text[: length // 2]} … ({len(text) - length} characters) … {text[-(length // 2) :]}"
