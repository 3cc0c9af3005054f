"""The requirements of a test on hosts, and the reason for a skip if no host can meet them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from ..errors import PropolisError
from ..session.internals import parameter_of
from ..session.stash import SETTINGS
from ..settings import ENGINE
from .declarations import MarkerError, declared

if TYPE_CHECKING:
    from ..guests.adapter import GuestAdapter
    from ..hosts.host import HostSpec
    from ..settings import Settings

__all__ = ["GUEST_FIXTURE", "Requirements", "Unmet", "able_hosts", "parametrize_guests", "requirements_of", "unmet"]

GUEST_FIXTURE: Final = "propolis_guest"
"""The fixture that a test with the marker ``guest_os`` is parametrised by."""

REMOTE_FIXTURES: Final = frozenset({"remote_host", "remote_hosts"})


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """The requirements of a test on hosts.

    :param hosts: the number of distinct hosts at once.
    :param labels: labels that each of them must have.
    :param guest: the guest that it boots; None for the default one.
    :param inventory: whether it needs hosts to be named at all.
    """

    hosts: int = 1
    labels: frozenset[str] = frozenset()
    guest: str | None = None
    zfs: bool = False
    kvm: bool = False
    memory_mib: int = 0
    cpus: int = 0
    server: str | None = None
    inventory: bool = False


def requirements_of(item: pytest.Item) -> Requirements:
    """Return the requirements of a test, from its markers and fixtures.

    :raises pytest.UsageError: when the arguments of a marker are wrong.
    """
    try:
        found = declared(item)
    except MarkerError as error:
        raise pytest.UsageError(str(error)) from None
    needed, nodes = found.get("requires", {}), found.get("multi_node", {})
    fixtures = getattr(item, "fixturenames", ())
    return Requirements(
        hosts=nodes.get("hosts", 2 if "remote_host" in fixtures else 1),
        labels=needed.get("labels", frozenset()) | nodes.get("labels", frozenset()),
        guest=parameter_of(item, GUEST_FIXTURE),
        zfs=needed.get("zfs", False),
        kvm=needed.get("kvm", False),
        memory_mib=needed.get("memory_mib", 0),
        cpus=needed.get("cpus", 0),
        server=needed.get("server"),
        inventory=not REMOTE_FIXTURES.isdisjoint(fixtures),
    )


def parametrize_guests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test with its guests, and check the arguments of all its markers.

    Errors are those of the collection, so that a misspelt marker does not look like a test that passes.
    """
    try:
        found = declared(metafunc)
        names = found.get("guest_os", {}).get("names", ())
        for name in names:
            guest_named(metafunc.config, name)
    except (MarkerError, pytest.UsageError) as error:
        raise pytest.Collector.CollectError(str(error)) from None
    if names:
        if GUEST_FIXTURE not in metafunc.fixturenames:
            metafunc.fixturenames.append(GUEST_FIXTURE)
        metafunc.parametrize(GUEST_FIXTURE, names, indirect=True)


class Unmet(msgspec.Struct, frozen=True):
    """The reason why a test cannot run on the hosts of a run.

    :param remedy: a remedy; empty if none is known.
    """

    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


def unmet(item: pytest.Item) -> Unmet | None:
    """Return why a test cannot run on the hosts of this run; None if it can. Starts nothing."""
    needed = requirements_of(item)
    if needed == Requirements():
        return None
    settings = item.config.stash[SETTINGS]
    return (
        _unmet_hosts(needed, settings)
        or _unmet_capability(needed, settings)
        or (_unmet_guest(item.config, needed.guest, settings) if needed.guest else None)
    )


def able_hosts(needed: Requirements, settings: Settings) -> tuple[str, ...]:
    """Return the names of the run's hosts that have the labels, the memory and the processors that a test needs."""
    return tuple(
        spec.name
        for spec in _specs(settings)
        if needed.labels <= spec.labels
        and all(getattr(needed, name) <= (getattr(spec, name) or _own(name)) for name in _SIZES)
    )


_SIZES: Final = ("memory_mib", "cpus")


def _unmet_hosts(needed: Requirements, settings: Settings) -> Unmet | None:
    specs = _specs(settings)
    fitting = [spec for spec in specs if needed.labels <= spec.labels]
    if needed.hosts > len(fitting) or (needed.inventory and settings.hosts is None):
        labelled = f" with the labels {', '.join(sorted(needed.labels))}" if needed.labels else ""
        count = max(needed.hosts, 2 if needed.inventory else 1)
        remedy = f"--propolis-hosts local:{count}, or the ini key propolis_hosts, makes {count} of this machine"
        if needed.labels:
            remedy = "name hosts with these labels in a file for --propolis-hosts"
        hosts = "1 host" if count == 1 else f"{count} hosts"
        return Unmet(f"it needs {hosts}{labelled}, and the run has {len(fitting)}", remedy)
    for name in _SIZES:
        wanted = getattr(needed, name)
        most = max((getattr(spec, name) or _own(name) for spec in fitting), default=0)
        if wanted > most:
            return Unmet(f"it needs a host with {name}={wanted}, and the largest of the run has {most}")
    return None


@cache
def _own(name: str) -> int:
    """Return the number of processors of this machine, or its memory in MiB."""
    import os

    if name == "cpus":
        return os.cpu_count() or 1
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def _specs(settings: Settings) -> Sequence[HostSpec]:
    from ..hosts.inventory.inventory import read_inventory
    from ..hosts.local import THIS_MACHINE

    return read_inventory(settings.hosts) if settings.hosts is not None else (THIS_MACHINE,)


def _unmet_capability(needed: Requirements, settings: Settings) -> Unmet | None:
    from ..hosts.inventory.local_capabilities import has_kvm, zfs_obstacle

    if needed.server == "propolis" and settings.server == ENGINE:
        return Unmet(
            "it needs a propolis-server, and VMs of this run are served by the engine",
            "--propolis-server PATH, ARTIFACT or URL names one",
        )
    if needed.server == ENGINE and settings.server != ENGINE:
        return Unmet(f"it needs the engine, and VMs of this run are served by {settings.server}")
    if needed.zfs and (obstacle := zfs_obstacle(settings)):
        return Unmet("it needs ZFS", obstacle)
    if needed.kvm and not has_kvm(settings):
        return Unmet("it needs KVM, and no guest runs on it here", "`propolis doctor` says why")
    return None


def _unmet_guest(config: pytest.Config, name: str, settings: Settings) -> Unmet | None:
    adapter = guest_named(config, name)
    from ..storage.store import ArtifactStore
    from ..storage.user_directories import default_artifact_dir

    store = ArtifactStore(settings.artifact_dir or default_artifact_dir())
    image = adapter.image
    for artifact in (image.kernel, image.initrd, image.disk):
        if artifact is not None and (command := store.missing_build(artifact)):
            return Unmet(f"the guest {name} is not built", f"`{command}` builds it")
    return None


def guest_named(config: pytest.Config, name: str) -> GuestAdapter:
    """Return a guest of the run.

    :raises pytest.UsageError: when there is none of that name, with the closest one.
    """
    from itertools import chain

    from ..guests.registry import GuestRegistry

    registry = GuestRegistry(chain.from_iterable(config.hook.pytest_propolis_guests(config=config)))
    try:
        return registry.get(name)
    except PropolisError as error:
        raise pytest.UsageError(str(error)) from None
