"""Parsers of option texts: each returns the value, or raises `ValueError` that says what is allowed.

Like `settings`, this module imports only the standard library, because pytest reads it before every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple

__all__ = [
    "Shard",
    "automatic_or_number",
    "coordination_store",
    "host_and_port",
    "inventory",
    "listen_address",
    "name_or_path",
    "non_empty",
    "one_of",
    "path",
    "paths",
    "positive_seconds",
    "seconds",
    "shard",
    "whole_number",
    "yes_or_no",
]

_WORDS: Final = dict.fromkeys(("yes", "true", "on", "1"), True) | dict.fromkeys(("no", "false", "off", "0"), False)


class Shard(NamedTuple):
    """A part of the tests.

    :param number: from 1 to `total`.
    :param total: how many parts there are.
    """

    number: int
    total: int


def whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"must be a whole number from {low} to {high}") from None
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return parse


def positive_seconds(text: str) -> float:
    number = _number(text)
    if not 0 < number < float("inf"):
        raise ValueError("must be more than 0 seconds")
    return number


def seconds(text: str) -> float:
    number = _number(text)
    if not 0 <= number < float("inf"):
        raise ValueError("must be 0 or more seconds")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number of seconds") from None


def automatic_or_number(text: str) -> int | Literal["auto"]:
    try:
        return "auto" if text == "auto" else whole_number(0, 64)(text)
    except ValueError:
        raise ValueError("must be auto or a whole number from 0 to 64") from None


def shard(text: str) -> Shard:
    number, _, total = text.partition("/")
    try:
        part = Shard(int(number), int(total))
    except ValueError:
        raise ValueError("must be I/N, as in 2/5") from None
    if not 1 <= part.number <= part.total:
        raise ValueError("must be from 1/N to N/N")
    return part


def one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError("must be one of " + ", ".join(allowed))
        return text

    return parse


def yes_or_no(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise ValueError("must be yes or no")
    return _WORDS[text.lower()]


def non_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text.strip()


def path(text: str) -> Path:
    """Return the path with ``~`` expanded; what a relative one is relative to depends on the place it stands in."""
    try:
        text.encode()
        return Path(non_empty(text)).expanduser()
    except UnicodeEncodeError:
        raise ValueError("must be text in UTF-8: link to it under such a name") from None
    except RuntimeError:
        raise ValueError("needs a home directory, and none is known: set HOME, or give a path without ~") from None


def inventory(text: str) -> str | Path:
    """Return ``local:N`` as it is, or the path of a file."""
    return non_empty(text) if text.strip().startswith("local:") else path(text)


def name_or_path(text: str) -> str | Path:
    """Return a name or a URL as it is, and text with a slash as a path."""
    return path(text) if "/" in text and "://" not in text else non_empty(text)


def lease_place(text: str) -> str | Path:
    """Parse a directory, or the address of etcd."""
    return text if text.startswith(("etcd://", "etcds://")) else path(text)


def coordination_store(text: str) -> str:
    """Return ``embedded``, or the address of a store, which is checked when it is used."""
    if text != "embedded" and not text.startswith(("etcd://", "etcds://", "embedded://", "embeddeds://")):
        raise ValueError("must be embedded, etcd://HOST:PORT or embedded://TOKEN@HOST:PORT")
    return text


def host_and_port(text: str) -> tuple[str, int]:
    """Return the parts of ``HOST:PORT``; an IPv6 address has brackets."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError("must be HOST:PORT, as in 192.0.2.1:7443 or [::1]:7443")
    return host, int(port)


def listen_address(text: str) -> str:
    """Return an address to listen at, with its port."""
    host_and_port(text)
    return text


def paths(text: str) -> tuple[Path, ...]:
    return tuple(path(part) for part in text.split(os.pathsep))
