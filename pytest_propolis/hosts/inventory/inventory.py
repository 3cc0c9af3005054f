"""The inventory: which hosts a run may use.

::

    --propolis-hosts local:3          three separate local hosts, for tests that need several
    --propolis-hosts hosts.toml       a file:

    [hosts.rack-1]
    kind = "local"
    slots = 8
    labels = ["fast"]
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ...errors import SettingsError
from ..host import HostSpec
from ..kinds import HOST_KINDS

__all__ = ["read_inventory"]

_LOCAL: Final = re.compile(r"local:([0-9]+)")
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_MOST_LOCAL: Final = 32
_KEYS: Final = ("kind", "address", "slots", "cpus", "memory_mib", "labels", "options")


def read_inventory(setting: str | Path) -> tuple[HostSpec, ...]:
    """Return the hosts that the setting ``hosts`` names: ``local:N``, or those of a file.

    :raises SettingsError: when the setting or the file is wrong, naming the file, the host, and the key.
    """
    if isinstance(setting, str):
        if not (match := _LOCAL.fullmatch(setting)):
            raise SettingsError(f"--propolis-hosts {setting}: write local:N, as in local:2, or the path of a TOML file")
        return _local_hosts(int(match[1]))
    import tomllib  # here, because most runs have no such file

    path = setting
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            f"inventory {path} cannot be read: {error.strerror}",
            hint="--propolis-hosts takes local:N, or the path of a TOML file",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"inventory {path} is not TOML: {error}") from None
    _require_known(path, "", document, ("hosts",))
    hosts = document.get("hosts")
    if not isinstance(hosts, dict) or not hosts:
        raise SettingsError(
            f"inventory {path} names no hosts", hint='write a table for each: [hosts.NAME] kind = "local"'
        )
    return tuple(_host(path, name, table) for name, table in hosts.items())


def _local_hosts(count: int) -> tuple[HostSpec, ...]:
    if not 1 <= count <= _MOST_LOCAL:
        raise SettingsError(f"--propolis-hosts local:{count}: from 1 to {_MOST_LOCAL} local hosts can be made")
    return tuple(
        HostSpec(name=f"local-{number}", kind="local", address=f"127.0.0.{number}", options={})
        for number in range(1, count + 1)
    )


def _host(path: Path, name: str, table: Any) -> HostSpec:
    where = f"inventory {path}: host {name!r}"
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: the name may have letters, digits, '.', '_' and '-'")
    if not isinstance(table, dict):
        raise SettingsError(f"{where} is not a table", hint=f"write [hosts.{name}]")
    _require_known(path, f"host {name!r}: ", table, _KEYS)
    kind = _text(where, table, "kind")
    if kind not in HOST_KINDS:
        raise SettingsError(f"{where}: there is no kind {kind!r}", hint=_closest(kind, HOST_KINDS))
    labels = table.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise SettingsError(f"{where}: labels must be a list of words")
    options = table.get("options", {})
    if not isinstance(options, dict):
        raise SettingsError(f"{where}: options must be a table", hint=f"write [hosts.{name}.options]")
    return HostSpec(
        name=name,
        kind=kind,
        address=_text(where, table, "address", default=name if HOST_KINDS[kind].is_elsewhere else "localhost"),
        slots=_number(where, table, "slots"),
        cpus=_number(where, table, "cpus"),
        memory_mib=_number(where, table, "memory_mib"),
        labels=frozenset(labels),
        options=options,
    )


def _text(where: str, table: dict[str, Any], key: str, *, default: str | None = None) -> str:
    value = table.get(key, default)
    if value is None:
        raise SettingsError(f"{where} has no {key}", hint=f"one of {', '.join(HOST_KINDS)}" if key == "kind" else None)
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{where}: {key} must be a text, and is {value!r}")
    return value


def _number(where: str, table: dict[str, Any], key: str) -> int | None:
    value = table.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SettingsError(f"{where}: {key} must be a whole number from 1 on, and is {value!r}")
    return value


def _require_known(path: Path, where: str, table: dict[str, Any], known: Iterable[str]) -> None:
    known = tuple(known)
    for key in table:
        if key not in known:
            raise SettingsError(f"inventory {path}: {where}there is no key {key!r}", hint=_closest(key, known))


def _closest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
