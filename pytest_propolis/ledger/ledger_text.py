"""The ledger's file format: a header, then one JSON line per transition. No I/O."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from ..agent_api.retention import Kept
from ..errors import AgentError
from .entry import Entry, Owner
from .identity import ProcessIdentity

__all__ = [
    "FORMAT",
    "Gone",
    "Header",
    "Intent",
    "Keep",
    "LedgerContents",
    "Live",
    "Own",
    "Transition",
    "encode",
    "parse",
]

FORMAT: Final = 1
"""The newest supported format version, and the one written."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a ledger, which identifies its agent.

    :param version: the version of the format.
    :param tag: the run id and an unguessable suffix; every entry's id begins with it.
    :param agent: the agent's process.
    :param uid: the agent's user.
    :param since: when the ledger was opened, Unix time in seconds.
    :param disk_directory: the agent's disk directory, named as its run directory is; empty for none.
    :param lingers: whether the agent stays after its last client, for the next run.
    """

    version: int
    run: str
    tag: str = msgspec.field(name="mark")
    agent: ProcessIdentity
    uid: int
    since: float
    disk_directory: str = ""
    lingers: bool = False


class Intent(msgspec.Struct, frozen=True, tag_field="to", tag="intent"):
    """A resource is about to be created."""

    entry: Entry


class Live(msgspec.Struct, frozen=True, tag_field="to", tag="live"):
    """The resource exists; carries the facts known only after creation."""

    id: str
    what: dict[str, str]


class Keep(msgspec.Struct, frozen=True, tag_field="to", tag="keep"):
    """The resource survives its owner."""

    id: str
    kept: Kept


class Own(msgspec.Struct, frozen=True, tag_field="to", tag="own"):
    """The resource has a new owner."""

    id: str
    owner: Owner


class Gone(msgspec.Struct, frozen=True, tag_field="to", tag="gone"):
    """The resource no longer exists."""

    id: str


class _Version(msgspec.Struct):
    version: int


Transition = Intent | Live | Keep | Own | Gone
"""One line after the header."""

_decoder: Final = msgspec.json.Decoder(Transition)
_encoder: Final = msgspec.json.Encoder()


class LedgerContents(msgspec.Struct, frozen=True):
    """The parsed contents of a ledger file.

    :param entries: the entries that are not gone, by id, in order of their intents.
    :param end: the length in bytes of its complete lines; anything after that is a torn write.
    :param damaged: how many complete lines could not be parsed and were skipped.
    """

    header: Header
    entries: dict[str, Entry]
    end: int
    damaged: int = 0


def encode(*records: Header | Transition) -> bytes:
    """Encode transitions as complete lines, in this order."""
    return b"".join(_encoder.encode(record) + b"\n" for record in records)


def parse(data: bytes, path: Path) -> LedgerContents:
    """Parse a ledger, ignoring a torn last line; skip and count complete lines that cannot be parsed.

    :param path: the file's path, for error messages.
    :raises AgentError: if it has no complete header, or has a newer format.
    """
    end = data.rfind(b"\n") + 1
    first, *rest = data[:end].split(b"\n")
    header = _parse_header(first, path)
    entries: dict[str, Entry] = {}
    damaged = 0
    for line in rest[:-1]:
        try:
            _apply(_decoder.decode(line), entries)
        except (msgspec.DecodeError, KeyError):
            damaged += 1
    return LedgerContents(header, entries, end, damaged)


def _apply(transition: Transition, entries: dict[str, Entry]) -> None:
    match transition:
        case Intent(entry):
            entries[entry.id] = entry
        case Live(id, what):
            entries[id] = msgspec.structs.replace(entries[id], is_live=True, what=entries[id].what | what)
        case Keep(id, kept):
            entries[id] = msgspec.structs.replace(entries[id], kept=kept)
        case Own(id, owner):
            entries[id] = msgspec.structs.replace(entries[id], owner=owner)
        case Gone(id):
            # May be there twice: a reaper that was killed left the entry to the next one.
            entries.pop(id, None)


def _parse_header(line: bytes, path: Path) -> Header:
    try:
        if (version := msgspec.json.decode(line, type=_Version).version) > FORMAT:
            raise AgentError(
                f"the ledger {path} has format {version}, and this release knows formats up to {FORMAT}",
                hint="use the release of pytest-propolis that started the run",
            )
        return msgspec.json.decode(line, type=Header)
    except msgspec.DecodeError as error:
        raise AgentError(
            f"the ledger {path} has no readable header: {error}",
            hint="its agent died while starting, or it is not a ledger; look at its directory and remove it by hand",
        ) from error
