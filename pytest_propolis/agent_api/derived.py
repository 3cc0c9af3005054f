"""Messages about what hosts make and pass on to each other: templates of VMs, and prepared images of guests."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from .image_recipe import ImageNeeded
from .templates import TemplateNeeded

__all__ = [
    "AdoptDerived",
    "DerivedNeeded",
    "DerivedState",
    "DescribeDerived",
    "FindDerived",
    "FoundDerived",
    "SentDerived",
    "SentFile",
]

DerivedNeeded: TypeAlias = ImageNeeded | TemplateNeeded
"""What a host would make itself; an `ImageNeeded` with a recipe."""


class DescribeDerived(msgspec.Struct, frozen=True, kw_only=True):
    """Ask whether the agent's host has a template or a prepared image."""

    needed: DerivedNeeded


class DerivedState(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `DescribeDerived`.

    :param identity: what the same thing has on every host, whatever the paths there; of a template, empty where
        it is there.
    """

    is_there: bool
    identity: str


class FindDerived(msgspec.Struct, frozen=True, kw_only=True):
    """Ask an agent for what it has used or made, by its `DerivedState.identity`."""

    identity: str


class SentFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file on the agent's host.

    :param name: its name in the directory of the template or image.
    :param digest: what `file_stream.digest` returns for it.
    """

    name: str
    path: str
    size: int
    digest: str


class SentDerived(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent from one host to another.

    :param description: what the receiving agent needs to know beside the files: a template's manifest.
    """

    files: tuple[SentFile, ...]
    description: str = ""


class FoundDerived(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `FindDerived`; None if the host has no such thing."""

    found: SentDerived | None


class AdoptDerived(msgspec.Struct, frozen=True, kw_only=True):
    """Ask an agent to make a template or an image of files that it has fetched. They are used up.

    The answer is a stream of `StreamLine`.

    :param sent: with the paths of the files on this host.
    """

    needed: DerivedNeeded
    sent: SentDerived
