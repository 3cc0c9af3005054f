"""The text of a ledger: a header, then one JSON line per transition. Without I/O."""

from __future__ import annotations

from dataclasses import dataclass
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
"""The newest format that is understood, and the one that is written."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: who writes this ledger.

    :param version: of the format.
    :param mark: the run and an unguessable word; every entry's id begins with it.
    :param agent: the process that writes.
    :param uid: its user.
    :param since: when the ledger was opened, unix time in seconds.
    :param disk_directory: the agent's directory of disks, of the same name as its run directory; empty for none.
    """

    version: int
    run: str
    mark: str
    agent: ProcessIdentity
    uid: int
    since: float
    disk_directory: str = ""


class Intent(msgspec.Struct, frozen=True, tag_field="to", tag="intent"):
    """A resource is about to be created."""

    entry: Entry


class Live(msgspec.Struct, frozen=True, tag_field="to", tag="live"):
    """It exists, with what is known of it only now."""

    id: str
    what: dict[str, str]


class Keep(msgspec.Struct, frozen=True, tag_field="to", tag="keep"):
    """It survives its owner."""

    id: str
    kept: Kept


class Own(msgspec.Struct, frozen=True, tag_field="to", tag="own"):
    """It has another owner."""

    id: str
    owner: Owner


class Gone(msgspec.Struct, frozen=True, tag_field="to", tag="gone"):
    """It no longer exists."""

    id: str


class _Version(msgspec.Struct):
    version: int


Transition = Intent | Live | Keep | Own | Gone
"""What one line after the header says."""

_decoder: Final = msgspec.json.Decoder(Transition)
_encoder: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class LedgerContents:
    """What a ledger file says.

    :param entries: by id, those not gone, in the order of their intents.
    :param end: the length in bytes of its complete lines; what comes after is the torn end of a write.
    :param damaged: how many complete lines could not be understood and were skipped.
    """

    header: Header
    entries: dict[str, Entry]
    end: int
    damaged: int = 0


def encode(*records: Header | Transition) -> bytes:
    """Complete lines, in this order."""
    return b"".join(_encoder.encode(record) + b"\n" for record in records)


def parse(data: bytes, path: Path) -> LedgerContents:
    """What a ledger's text says, without its torn end; complete lines that make no sense are skipped and counted.

    :param path: where it is from, for errors.
    :raises AgentError: when it has no complete header, or is of a newer format.
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
            hint="its agent died while starting, or it is no ledger; look at its directory and remove it by hand",
        ) from error
