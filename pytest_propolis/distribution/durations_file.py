"""Files of how long tests take: a JSON object, with node ids as keys and seconds as values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from ..errors import SettingsError

__all__ = ["durations_text", "read_durations"]


def read_durations(path: Path) -> dict[str, float]:
    """Return the seconds that tests take, by node id.

    :raises SettingsError: when the file cannot be read, or is not of that form.
    """
    hint = "`pytest --propolis-write-durations FILE` writes one, and {} is an empty one"
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"durations {path} cannot be read: {error.strerror}", hint=hint) from None
    except ValueError as error:
        raise SettingsError(f"durations {path} is not JSON: {error}", hint=hint) from None
    if not isinstance(found, dict):
        raise SettingsError(f"durations {path} is not an object of JSON", hint=hint)
    for test, seconds in found.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise SettingsError(f"durations {path}: {seconds!r} of {test!r} is not a number of seconds", hint=hint)
    return {test: float(seconds) for test, seconds in found.items()}


def durations_text(durations: Mapping[str, float]) -> str:
    """Return the content of such a file. Its lines are sorted, so that two files can be compared."""
    return json.dumps({test: round(seconds, 3) for test, seconds in durations.items()}, indent=0, sort_keys=True) + "\n"
