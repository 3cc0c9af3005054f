"""Make templates before a VM needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...console.log import make_log_directory
from ...guests.adapter import GuestAdapter
from ...hosts.host import Host
from ...settings import Settings
from ..config import VmConfig
from ..disks.layout import placed
from ..provisioning.host_session import HostSession
from .template_maker import cold_reason

__all__ = ["prepare_template"]


async def prepare_template(
    host: Host, guest: GuestAdapter, settings: Settings, *, log_dir: Path, progress: Callable[[str], None]
) -> None:
    """Make the template of ``test_vm`` on a host, unless it exists or VMs boot from cold.

    :raises PropolisError: when it cannot be made.
    """
    complete = VmConfig(name="template", guest=guest.name).completed(settings)
    complete = placed(complete, guest)
    if cold_reason(complete, guest) is None:
        make_log_directory(log_dir)
        async with HostSession.on(host, group="templates", log_dir=log_dir, progress=progress) as session:
            await session.warm_starter.prepare(complete, guest)
