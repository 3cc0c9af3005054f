"""The options of an SSH host in the inventory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ...errors import SettingsError
from ..host import HostSpec
from .transport.transport import SshDestination

__all__ = ["OPTIONS", "check_options", "destination_of", "further_options", "may_connect_directly"]

OPTIONS: Final = ("config", "python", "qemu", "artifact_dir", "silence_s", "direct")
_OF_LINK: Final = ("python", "qemu", "artifact_dir", "silence_s")


def check_options(spec: HostSpec, *, known: Sequence[str] = OPTIONS) -> None:
    """
    :param known: the options of its kind.
    :raises SettingsError: when an option is not known, or has a bad value.
    """
    for name, value in spec.options.items():
        if name not in known:
            raise SettingsError(f"host {spec.name!r} has no option {name!r}", hint=f"known are {', '.join(known)}")
        if name in ("silence_s", "join_timeout_s"):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise SettingsError(f"host {spec.name!r}: {name} must be a number above 0, and is {value!r}")
        elif name == "direct":
            if not isinstance(value, bool):
                raise SettingsError(f"host {spec.name!r}: direct must be true or false, and is {value!r}")
        elif not isinstance(value, str) or not value:
            raise SettingsError(f"host {spec.name!r}: {name} must be a text, and is {value!r}")


def destination_of(spec: HostSpec) -> SshDestination:
    """Return the SSH destination of a host."""
    options = spec.options
    config = (str(Path(options["config"]).expanduser().absolute()),) if "config" in options else ()
    return SshDestination(name=spec.name, address=spec.address, config=config)


def further_options(spec: HostSpec) -> dict[str, Any]:
    """Return the options that the link process needs, beside the SSH configuration."""
    return {name: spec.options[name] for name in _OF_LINK if name in spec.options}


def may_connect_directly(spec: HostSpec) -> bool:
    """Return whether the host's agent may listen for those of other hosts, and connect to them."""
    return bool(spec.options.get("direct", True))
