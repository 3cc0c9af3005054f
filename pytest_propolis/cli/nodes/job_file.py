"""The file of a job: which program is on which node."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from ...errors import SettingsError

__all__ = ["JobNode", "read_job"]

HINT = "it is TOML with a table [[node]], which has name and command, for each program"


class JobNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program of a job.

    :param command: for ``/bin/sh``.
    :param host: where it runs, a host of the inventory, or several, each of which runs it as a node ``NAME-HOST``; by
        default this machine.
    :param directory: where it runs: on this machine, relative to the file; on another one, an absolute path there, or
        by default a directory of its own.
    :param files: what it needs there, relative to the file of the job: copied to the directory of its own.
    """

    name: str
    command: str
    host: str | tuple[str, ...] = ""
    address: str = ""
    labels: tuple[str, ...] = ()
    vital: bool = True
    directory: str | None = None
    files: tuple[str, ...] = ()
    environment: dict[str, str] = {}


class JobFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job."""

    node: Annotated[tuple[JobNode, ...], msgspec.Meta(min_length=1)]


def read_job(file: Path) -> tuple[JobNode, ...]:
    """Return the programs of a file, each with one host at the most.

    :raises SettingsError: when it is no job.
    """
    try:
        read = msgspec.convert(tomllib.loads(file.read_text()), JobFile)
    except OSError as error:
        raise SettingsError(f"job {file} cannot be read: {error.strerror}", hint=HINT) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"job {file}: {error}", hint=HINT) from None
    nodes = tuple(one for node in read.node for one in _of_each_host(node))
    names = [node.name for node in nodes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingsError(f"job {file} has two nodes {twice!r}", hint="give each its own name")
    return nodes


def _of_each_host(node: JobNode) -> list[JobNode]:
    if isinstance(node.host, str):
        return [node]
    return [msgspec.structs.replace(node, name=f"{node.name}-{host}", host=host) for host in node.host]
