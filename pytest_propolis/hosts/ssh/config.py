"""Options of a user's SSH configuration that asyncssh does not support, so that OpenSSH has to connect."""

from __future__ import annotations

import asyncio
import shutil
from typing import Final

from ...storage.programs import run_program
from .transport.transport import SshDestination

__all__ = ["has_openssh", "openssh_reason"]

UNHONOURED: Final = {
    "proxyusefdpass": ("yes",),
    "verifyhostkeydns": ("yes", "true", "ask"),
}
"""Options of which asyncssh supports all other values."""

UNKNOWN: Final = ("knownhostscommand", "bindinterface", "securitykeyprovider", "pkcs11provider")
"""Options that asyncssh ignores."""

UNKNOWN_DEFAULTS: Final = ("none", "internal", "")

UNKNOWN_LISTS: Final = ("pubkeyacceptedalgorithms",)
"""Options that asyncssh ignores, too; their default is a list that depends on the version of OpenSSH."""


def has_openssh() -> bool:
    """Return whether OpenSSH's client is installed here."""
    return shutil.which("ssh") is not None


async def openssh_reason(destination: SshDestination) -> str | None:
    """Return the option that requires OpenSSH, or None. No connection is made."""
    if not has_openssh():
        return None
    files = ("-F", destination.config[0]) if destination.config else ()
    shown, by_default = await asyncio.gather(
        run_program(["ssh", *files, "-G", destination.address]),
        run_program(["ssh", "-F", "none", "-G", destination.address]),
    )
    if shown.status != 0:
        return None  # asyncssh may support an option that this ssh does not
    defaults = by_default.output.splitlines()
    for line in shown.output.splitlines():
        option, _, value = line.partition(" ")
        if value in UNHONOURED.get(option, ()) or (option in UNKNOWN and value not in UNKNOWN_DEFAULTS):
            return f"{option} {value}"
        if option in UNKNOWN_LISTS and line not in defaults:
            return f"{option} {value}"
    return None
