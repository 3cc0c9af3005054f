"""This plugin's values in pytest's configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..settings import OPTIONS, text_of

__all__ = ["ini_directory", "ini_values"]


def ini_directory(config: pytest.Config) -> Path:
    """Return the directory that relative paths in the configuration file refer to, as for pytest's own path options."""
    return config.inipath.parent if config.inipath else config.invocation_params.dir


def ini_values(config: pytest.Config) -> dict[str, str]:
    """Return the text of every option of this plugin, by name; empty if the file does not set it.

    Numbers, booleans and lists of paths of TOML are returned as they would be written in an INI file.
    """
    return {option.name: text_of(option.name, _value(config, option.ini_key)) for option in OPTIONS}


def _value(config: pytest.Config, key: str) -> Any:
    try:
        return config.getini(key)
    except (TypeError, pytest.UsageError):
        # pytest 9 accepts only strings for an option without a declared type, and before pytest 9.2 no declared type
        # accepts both numbers and strings (`type=str | int | float | bool`).
        return _native_table(config)[key]


def _native_table(config: pytest.Config) -> dict[str, Any]:
    import tomllib  # here, because few projects write native types

    assert config.inipath is not None  # else the value would have been text
    document = tomllib.loads(config.inipath.read_text(encoding="utf-8"))
    table: dict[str, Any] = document.get("pytest") or document["tool"]["pytest"]
    return table
