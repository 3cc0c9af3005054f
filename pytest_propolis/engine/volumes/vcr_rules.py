"""Crucible's rules for replacing the volume construction request of a running volume.

Pure, so that they can be tested against the whole table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ...propolis_api import (
    DownstairsActive,
    DownstairsConnecting,
    DownstairsInfoConnectionMode,
    DownstairsInfoStatus,
    DownstairsLiveRepair,
    DownstairsStopping,
    ReplaceResult,
)
from .block_backend import ReplacementRefused
from .vcr import CrucibleOpts, FileRequest, RegionRequest, Vcr, VolumeRequest, as_volume

__all__ = ["TargetChange", "find_change", "judge_change"]


@dataclass(frozen=True, slots=True)
class TargetChange:
    """One downstairs is replaced by another.

    :param sub_volume: the index of its region in the volume.
    :param index: which of the region's targets.
    """

    sub_volume: int
    index: int
    old: str
    new: str


def find_change(old: Vcr, new: Vcr) -> TargetChange | None:
    """Return the target that differs; None when only the generation is higher.

    :raises ReplacementRefused: when the one cannot become the other, with the reason.
    """
    try:
        before, after = as_volume(old), as_volume(new)
    except ValueError as error:
        raise ReplacementRefused(str(error)) from None
    if before == after:
        raise ReplacementRefused("the volume construction requests are identical")
    _require_same(before, after, "id", "block_size")
    if len(before.sub_volumes) != len(after.sub_volumes):
        raise ReplacementRefused(f"sub_volumes: {len(before.sub_volumes)} cannot become {len(after.sub_volumes)}")
    changes = [change for index in range(len(before.sub_volumes)) for change in _changes(index, before, after)]
    if len(changes) > 1:
        raise ReplacementRefused(f"{len(changes)} targets differ, and only one can be replaced at a time")
    _check_parents(before, after, changes)
    if not changes:
        _check_generations(before, after)
        return None
    return changes[0]


def judge_change(change: TargetChange, targets: Sequence[str], states: Sequence[DownstairsInfoStatus]) -> ReplaceResult:
    """Return a volume's answer to the replacement of one downstairs, given the states of all.

    :raises ReplacementRefused: when it cannot be done now, with the reason.
    """
    if change.new in targets:
        if change.old in targets:
            raise ReplacementRefused(f"both the old target {change.old} and the new one {change.new} are in use")
        state = states[targets.index(change.new)]
        return ReplaceResult.COMPLETED_ALREADY if isinstance(state, DownstairsActive) else ReplaceResult.STARTED_ALREADY
    if change.old not in targets:
        return ReplaceResult.MISSING
    for target, state in zip(targets, states, strict=True):
        if target != change.old and (reason := _busy(state)):
            raise ReplacementRefused(f"{change.old} cannot be replaced while downstairs {target} {reason}")
    return ReplaceResult.STARTED


def _busy(state: DownstairsInfoStatus) -> str | None:
    match state:
        case DownstairsStopping():
            return "is stopping"
        case DownstairsLiveRepair():
            return "is being repaired"
        case DownstairsConnecting(mode=mode) if mode is not DownstairsInfoConnectionMode.NEW:
            return f"is {mode.value}"
    return None


def _changes(index: int, before: VolumeRequest, after: VolumeRequest) -> Iterator[TargetChange]:
    old, new = before.sub_volumes[index], after.sub_volumes[index]
    if isinstance(old, VolumeRequest) and isinstance(new, VolumeRequest):
        if _targets(old) != _targets(new):
            raise ReplacementRefused(f"sub-volume {index} is a volume itself, whose targets cannot be replaced")
        _require_same(old, new, *old.__struct_fields__)
        return
    if not (isinstance(old, RegionRequest) and isinstance(new, RegionRequest)):
        raise ReplacementRefused(f"sub-volume {index}: only regions can be compared")
    _require_same(old, new, "block_size", "blocks_per_extent", "extent_count")
    if new.generation < old.generation:
        raise ReplacementRefused(f"generation {new.generation} is lower than {old.generation}")
    _require_same(old.opts, new.opts, *(name for name in CrucibleOpts.__struct_fields__ if name != "target"))
    if len(old.opts.target) != len(new.opts.target):
        raise ReplacementRefused(f"targets: {len(old.opts.target)} cannot become {len(new.opts.target)}")
    for number, (was, becomes) in enumerate(zip(old.opts.target, new.opts.target, strict=True)):
        if was != becomes:
            yield TargetChange(sub_volume=index, index=number, old=was, new=becomes)


def _targets(volume: VolumeRequest) -> list[object]:
    return [
        _targets(part) if isinstance(part, VolumeRequest) else part.opts.target
        for part in volume.sub_volumes
        if isinstance(part, VolumeRequest | RegionRequest)
    ]


def _check_parents(before: VolumeRequest, after: VolumeRequest, changes: Sequence[TargetChange]) -> None:
    old, new = before.read_only_parent, after.read_only_parent
    if new is None:
        return
    if old is None:
        raise ReplacementRefused("a read-only parent cannot be added")
    if isinstance(old, FileRequest) or isinstance(new, FileRequest):
        # As upstream, which has no comparison for them: such a volume is replaced never, not even with itself.
        raise ReplacementRefused("volumes over a file as their read-only parent cannot be compared")
    if old != new:
        raise ReplacementRefused("the read-only parents differ" + (", and a target too" if changes else ""))


def _check_generations(before: VolumeRequest, after: VolumeRequest) -> None:
    """Only the first sub-volume's generation may differ by itself."""
    generations = [
        (index, old.generation, new.generation)
        for index, (old, new) in enumerate(zip(before.sub_volumes, after.sub_volumes, strict=True))
        if isinstance(old, RegionRequest) and isinstance(new, RegionRequest)
    ]
    risen = [index for index, old, new in generations if new > old]
    if risen and risen[0] != 0:
        raise ReplacementRefused(f"only the generation of sub-volume {risen[0]} differs, and not that of the first")


def _require_same(old: msgspec.Struct, new: msgspec.Struct, *names: str) -> None:
    for name in names:
        was, becomes = getattr(old, name), getattr(new, name)
        if was != becomes:
            shown = "" if name in _SECRETS else f": {was} cannot become {becomes}"
            raise ReplacementRefused(f"{name} differs{shown}")


_SECRETS: Mapping[str, bool] = {"key": True, "key_pem": True}
