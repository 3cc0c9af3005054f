"""The registration of a producer: omicron's `common/src/api/internal/nexus.rs`, and Nexus's ``/metrics/producers``."""

from __future__ import annotations

from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec

__all__ = [
    "REGISTRATION_PATH",
    "Duration",
    "MetricsConfig",
    "ProducerEndpoint",
    "ProducerKind",
    "ProducerRegistrationResponse",
]

REGISTRATION_PATH: Final = "/metrics/producers"


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The address at which a server of VMs serves metrics, and the registry.

    :param host: the IP address to listen on, with any free port.
    :param registry: IP and port of the registry.
    """

    host: str
    registry: str


class Duration(msgspec.Struct, frozen=True, kw_only=True):
    """A length of time, as serde writes Rust's."""

    secs: int
    nanos: int = 0

    @classmethod
    def of(cls, seconds: float) -> Duration:
        secs = int(seconds)
        return cls(secs=secs, nanos=int((seconds - secs) * 1e9))

    @property
    def seconds(self) -> float:
        return self.secs + self.nanos / 1e9


class ProducerKind(StrEnum):
    """The kind of a producer."""

    SLED_AGENT = "sled_agent"
    SERVICE = "service"
    INSTANCE = "instance"
    MANAGEMENT_GATEWAY = "management_gateway"


class ProducerEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A producer that registers.

    :param address: IP and port at which ``GET /{id}`` answers its samples.
    :param interval: how often it wants to be asked.
    """

    id: UUID
    kind: ProducerKind
    address: str
    interval: Duration


class ProducerRegistrationResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response to a registration.

    :param lease_duration: how long the registration is valid.
    """

    lease_duration: Duration
