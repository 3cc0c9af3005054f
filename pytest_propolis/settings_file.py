"""The settings file: a TOML file with one table, ``[settings]``, whose keys are names of options."""

from __future__ import annotations

import tomllib
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from .errors import SettingsError

__all__ = ["read_settings_file"]


def read_settings_file(path: Path, *, named_by: str, known: AbstractSet[str]) -> dict[str, Any]:
    """Return the values of a settings file, by the names of their options.

    :param named_by: what names the file, for errors.
    :param known: the names of the options that it may hold.
    :raises SettingsError: when it cannot be read, or holds anything else.
    """
    hint = f"{named_by} names this file: make it readable TOML with a [settings] table, or drop the option"
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error.strerror}", hint=hint) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} is not TOML: {error}", hint=hint) from None
    table = document.get("settings", {})
    if not isinstance(table, dict):
        raise SettingsError(f"settings file {path}: settings is not a table", hint=hint)
    wrong = sorted({key for key in document if key != "settings"} | (table.keys() - known))
    if wrong:
        raise SettingsError(
            f"settings file {path} has unknown keys: {', '.join(wrong)}",
            hint=f"it holds one table, [settings], with any of {', '.join(sorted(known))}",
        )
    return table
