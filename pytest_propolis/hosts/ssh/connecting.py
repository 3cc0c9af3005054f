"""Open a connection to a host: with asyncssh, with OpenSSH if asyncssh does not support the configuration, or through
the run's listener if the host joins."""

from __future__ import annotations

from pathlib import Path

from ...errors import CapabilityMissing, HostError
from ..joined.messages import JoinDestination
from .config import has_openssh, openssh_reason
from .transport.openssh_transport import OpensshTransport
from .transport.transport import SshDestination, Transport

__all__ = ["connect"]


async def connect(destination: SshDestination | JoinDestination, *, control: Path) -> Transport:
    """Open a connection. With OpenSSH, the first command opens it.

    :param control: a path for a control socket of OpenSSH.
    :raises HostError: when the host cannot be reached, refuses, or is not trusted.
    :raises CapabilityMissing: when neither asyncssh nor OpenSSH is installed.
    """
    if isinstance(destination, JoinDestination):
        from ..joined.transport import JoinTransport

        return await JoinTransport.connect(destination)
    if await openssh_reason(destination):
        return OpensshTransport(destination, control=control)
    try:
        import asyncssh

        from .transport.asyncssh_transport import FALLBACK_ERRORS, AsyncsshTransport, describe
    except ImportError:
        if has_openssh():
            return OpensshTransport(destination, control=control)
        raise CapabilityMissing(
            f"host {destination.name}: neither asyncssh nor ssh is installed here",
            hint="pip install 'pytest-propolis[ssh]'",
        ) from None
    try:
        return await AsyncsshTransport.connect(destination)
    except FALLBACK_ERRORS as error:
        if has_openssh():
            return OpensshTransport(destination, control=control)
        raise _failed(destination, describe(error)) from None
    except (OSError, asyncssh.Error) as error:
        raise _failed(destination, describe(error)) from None


def _failed(destination: SshDestination, reason: str) -> HostError:
    return HostError(
        f"host {destination.name}: no SSH connection to {destination.address}: {reason}",
        hint=f"`ssh {destination.address} true` must work without a prompt",
    )
