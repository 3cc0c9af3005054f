"""Volume construction requests (VCRs): Crucible's description of a volume, as JSON."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final, TypeAlias
from uuid import UUID

import msgspec

__all__ = [
    "REPLICAS",
    "CrucibleOpts",
    "FileRequest",
    "RegionRequest",
    "UrlRequest",
    "Vcr",
    "VolumeRequest",
    "as_volume",
    "decode_vcr",
    "only_region",
]

REPLICAS: Final = 3
LARGEST_BYTES: Final = (1 << 63) - 1
HIGHEST_GENERATION: Final = (1 << 64) - 1
HIGHEST_PORT: Final = 65535


class CrucibleOpts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of an upstairs, with the addresses of a region's downstairs.

    :param id: of the upstairs; it stays the same whatever targets are replaced.
    :param target: the addresses of the downstairs, ``IP:PORT``.
    :param key: the secret that a downstairs expects of its upstairs, in base64.
    """

    id: UUID
    target: tuple[str, ...]
    lossy: bool = False
    flush_timeout: float | None = None
    key: str | None = None
    cert_pem: str | None = None
    key_pem: str | None = None
    root_cert_pem: str | None = None
    control: str | None = None
    read_only: bool = False


class RegionRequest(msgspec.Struct, frozen=True, kw_only=True, tag="region", forbid_unknown_fields=True):
    """A replicated region. Sizes are in bytes (`block_size`) and in blocks."""

    block_size: int
    blocks_per_extent: int
    extent_count: int
    opts: CrucibleOpts
    generation: int

    @property
    def size_bytes(self) -> int:
        return self.block_size * self.blocks_per_extent * self.extent_count


class FileRequest(msgspec.Struct, frozen=True, kw_only=True, tag="file", forbid_unknown_fields=True):
    """A file of the host that a volume is laid over."""

    id: UUID
    block_size: int
    path: str


class UrlRequest(msgspec.Struct, frozen=True, kw_only=True, tag="url", forbid_unknown_fields=True):
    """Data of a web server as the read-only parent of a volume."""

    id: UUID
    block_size: int
    url: str


class VolumeRequest(msgspec.Struct, frozen=True, kw_only=True, tag="volume", forbid_unknown_fields=True):
    """Parts one after another, over a read-only parent if there is one."""

    id: UUID
    block_size: int
    sub_volumes: tuple[VolumeRequest | RegionRequest | FileRequest | UrlRequest, ...]
    read_only_parent: VolumeRequest | RegionRequest | FileRequest | UrlRequest | None = None


Vcr: TypeAlias = VolumeRequest | RegionRequest | FileRequest | UrlRequest
_DECODER: msgspec.json.Decoder[Vcr] = msgspec.json.Decoder(Vcr)


def decode_vcr(text: str) -> Vcr:
    """
    :raises ValueError: with the place of the fault.
    """
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"the volume construction request is not valid: {error}") from None


def as_volume(vcr: Vcr) -> VolumeRequest:
    """
    :raises ValueError: when it is a part of a volume only.
    """
    if not isinstance(vcr, VolumeRequest):
        raise ValueError(f"the volume construction request is a {vcr.__struct_config__.tag}, and must be a volume")
    return vcr


def only_region(volume: VolumeRequest) -> RegionRequest:
    """Return the region of a volume that this engine supports.

    :raises ValueError: naming what it cannot.
    """
    if len(volume.sub_volumes) != 1:
        raise ValueError(
            f"volume {volume.id} has {len(volume.sub_volumes)} sub-volumes, and this server supports volumes of one:"
            " give each region a disk of its own, and join the disks in the guest, or use a propolis-server"
        )
    region = volume.sub_volumes[0]
    if not isinstance(region, RegionRequest):
        raise ValueError(f"its sub-volume is a {region.__struct_config__.tag}, and this server supports regions")
    if len(region.opts.target) != REPLICAS:
        raise ValueError(f"it has {len(region.opts.target)} targets, and a region has {REPLICAS}")
    for target in region.opts.target:
        _require_address(target)
    if len(set(region.opts.target)) != REPLICAS:
        raise ValueError("two of its targets have the same address")
    if region.block_size not in (512, 4096) or region.block_size != volume.block_size:
        raise ValueError(f"block_size is {region.block_size}: it must be 512 or 4096, in the volume and its region")
    if region.blocks_per_extent < 1 or region.extent_count < 1:
        raise ValueError("blocks_per_extent and extent_count must be at least 1")
    if region.size_bytes > LARGEST_BYTES:
        raise ValueError(
            f"{region.extent_count} extents are {region.size_bytes} bytes: at most {LARGEST_BYTES} are possible"
        )
    if not 0 <= region.generation <= HIGHEST_GENERATION:
        raise ValueError(f"generation is {region.generation}: it must be from 0 to {HIGHEST_GENERATION}")
    if volume.read_only_parent is not None and not isinstance(volume.read_only_parent, FileRequest):
        raise ValueError("its read-only parent is not a file, and this server supports only files")
    return region


def _require_address(target: str) -> None:
    """
    :raises ValueError: when a target is no address.
    """
    host, _, port = target.rpartition(":")
    is_ipv6 = host.startswith("[") and host.endswith("]")
    try:
        ip_address(host[1:-1] if is_ipv6 else host)
        is_address = port.isdecimal() and 0 < int(port) <= HIGHEST_PORT
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError(f"its target {target!r} is not an address: give IP:PORT, as 127.0.0.1:3810 or [::1]:3810")
