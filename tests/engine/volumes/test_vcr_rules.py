"""The rules for replacing a volume, one by one."""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pytest_propolis.engine.volumes.block_backend import ReplacementRefused
from pytest_propolis.engine.volumes.replica import Phase, Replica
from pytest_propolis.engine.volumes.session import Session
from pytest_propolis.engine.volumes.vcr import Vcr, as_volume, decode_vcr, only_region
from pytest_propolis.engine.volumes.vcr_rules import TargetChange, find_change, judge_change
from pytest_propolis.propolis_api import (
    DownstairsActive,
    DownstairsConnecting,
    DownstairsInfoConnectionMode,
    DownstairsInfoNegotiationStatus,
    DownstairsLiveRepair,
    DownstairsStopping,
    ReplaceResult,
)

OLD, NEW, OTHERS = "127.0.0.1:1", "127.0.0.1:9", ["127.0.0.1:2", "127.0.0.1:3"]
ID = "00000000-0000-0000-0000-000000000001"
OTHER_ID = "00000000-0000-0000-0000-000000000002"


def region() -> dict[str, Any]:
    opts = {"id": ID, "target": [OLD, *OTHERS], "lossy": False, "flush_timeout": None, "key": "k", "read_only": False}
    opts |= {"cert_pem": None, "key_pem": None, "root_cert_pem": None, "control": None}
    sizes = {"block_size": 4096, "blocks_per_extent": 16, "extent_count": 4}
    return {"type": "region", **sizes, "opts": opts, "generation": 3}


def file() -> dict[str, Any]:
    return {"type": "file", "id": ID, "block_size": 4096, "path": "/image"}


def volume(*parts: dict[str, Any], parent: dict[str, Any] | None = None) -> dict[str, Any]:
    sub_volumes = list(parts) or [region()]
    return {"type": "volume", "id": ID, "block_size": 4096, "sub_volumes": sub_volumes, "read_only_parent": parent}


def vcr(document: dict[str, Any]) -> Vcr:
    return decode_vcr(msgspec.json.encode(document).decode())


def changed(document: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    new = copy.deepcopy(document)
    change(new)
    return new


def in_turn(*changes: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for one in changes:
            one(document)

    return change


def first(document: dict[str, Any]) -> dict[str, Any]:
    part = document["sub_volumes"][0]
    assert isinstance(part, dict)
    return part


def retarget(document: dict[str, Any], index: int = 0, part: int = 0, address: str = NEW) -> None:
    document["sub_volumes"][part]["opts"]["target"][index] = address


def test_one_target_that_differs_is_a_replacement() -> None:
    change = find_change(vcr(volume()), vcr(changed(volume(), retarget)))
    assert change == TargetChange(sub_volume=0, index=0, old=OLD, new=NEW)


def test_a_target_can_be_replaced_with_the_same_generation_and_with_a_higher_one() -> None:
    new = changed(changed(volume(), retarget), lambda new: first(new).update(generation=4))
    assert find_change(vcr(volume()), vcr(new))


def test_a_higher_generation_alone_is_no_replacement() -> None:
    assert find_change(vcr(volume()), vcr(changed(volume(), lambda new: first(new).update(generation=4)))) is None


def test_a_read_only_parent_can_be_dropped() -> None:
    new = changed(volume(), lambda new: first(new).update(generation=4))
    assert find_change(vcr(volume(parent=file())), vcr(new)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda new: None, "identical"),
        (in_turn(retarget, lambda new: retarget(new, 1, address="127.0.0.1:8")), "2 targets differ"),
        (lambda new: first(new).update(generation=2), "generation 2 is lower than 3"),
        (in_turn(retarget, lambda new: first(new).update(generation=2)), "generation 2 is lower than 3"),
        (lambda new: new.update(id=OTHER_ID), "id differs"),
        (lambda new: new.update(block_size=512), "block_size differs"),
        (lambda new: new["sub_volumes"].append(region()), "sub_volumes: 1 cannot become 2"),
        (lambda new: first(new).update(block_size=512), "block_size differs"),
        (lambda new: first(new).update(blocks_per_extent=8), "blocks_per_extent differs"),
        (lambda new: first(new).update(extent_count=8), "extent_count differs"),
        (lambda new: first(new)["opts"].update(id=OTHER_ID), "id differs"),
        (lambda new: first(new)["opts"].update(lossy=True), "lossy differs"),
        (lambda new: first(new)["opts"].update(flush_timeout=0.5), "flush_timeout differs"),
        (lambda new: first(new)["opts"].update(key="other"), "key differs$"),
        (lambda new: first(new)["opts"].update(cert_pem="c"), "cert_pem differs"),
        (lambda new: first(new)["opts"].update(key_pem="c"), "key_pem differs$"),
        (lambda new: first(new)["opts"].update(root_cert_pem="c"), "root_cert_pem differs"),
        (lambda new: first(new)["opts"].update(control="127.0.0.1:7"), "control differs"),
        (lambda new: first(new)["opts"].update(read_only=True), "read_only differs"),
        (lambda new: first(new)["opts"]["target"].pop(), "targets: 3 cannot become 2"),
        (in_turn(retarget, lambda new: new.update(read_only_parent=file())), "cannot be added"),
        (lambda new: new.update(sub_volumes=[file()]), "only regions"),
    ],
)
def test_what_upstream_rejects(change: Callable[[dict[str, Any]], object], reason: str) -> None:
    with pytest.raises(ReplacementRefused, match=reason):
        find_change(vcr(volume()), vcr(changed(volume(), change)))


def test_targets_of_two_regions_cannot_be_replaced_at_once() -> None:
    two = volume(region(), region())
    new = changed(two, in_turn(retarget, lambda new: retarget(new, part=1)))
    with pytest.raises(ReplacementRefused, match="2 targets differ"):
        find_change(vcr(two), vcr(new))


def test_a_generation_alone_must_be_that_of_the_first_region() -> None:
    two = volume(region(), region())
    new = changed(two, lambda new: new["sub_volumes"][1].update(generation=4))
    with pytest.raises(ReplacementRefused, match="only the generation of sub-volume 1"):
        find_change(vcr(two), vcr(new))


def test_a_volume_over_a_file_is_never_replaced() -> None:
    over_file = volume(parent=file())
    with pytest.raises(ReplacementRefused, match="cannot be compared"):
        find_change(vcr(over_file), vcr(changed(over_file, retarget)))


def test_a_target_of_a_nested_volume_cannot_be_replaced() -> None:
    nested = volume(volume())
    new = changed(nested, lambda new: retarget(first(new)))
    with pytest.raises(ReplacementRefused, match="whose targets cannot be replaced"):
        find_change(vcr(nested), vcr(new))


CHANGE = TargetChange(sub_volume=0, index=0, old=OLD, new=NEW)
ACTIVE = DownstairsActive()


def connecting(mode: DownstairsInfoConnectionMode) -> DownstairsConnecting:
    return DownstairsConnecting(mode=mode, state=DownstairsInfoNegotiationStatus.WAIT_CONNECT)


@pytest.mark.parametrize(
    ("targets", "states", "result"),
    [
        ([OLD, *OTHERS], [ACTIVE] * 3, ReplaceResult.STARTED),
        ([OLD, *OTHERS], [connecting(DownstairsInfoConnectionMode.OFFLINE), ACTIVE, ACTIVE], ReplaceResult.STARTED),
        ([OLD, *OTHERS], [ACTIVE, connecting(DownstairsInfoConnectionMode.NEW), ACTIVE], ReplaceResult.STARTED),
        ([NEW, *OTHERS], [ACTIVE] * 3, ReplaceResult.COMPLETED_ALREADY),
        ([NEW, *OTHERS], [DownstairsLiveRepair(), ACTIVE, ACTIVE], ReplaceResult.STARTED_ALREADY),
        (["127.0.0.1:5", *OTHERS], [ACTIVE] * 3, ReplaceResult.MISSING),
    ],
)
def test_what_a_volume_answers(targets: list[str], states: list[Any], result: ReplaceResult) -> None:
    assert judge_change(CHANGE, targets, states) is result


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (DownstairsStopping(), "is stopping"),
        (DownstairsLiveRepair(), "is being repaired"),
        (connecting(DownstairsInfoConnectionMode.REPLACED), "is replaced"),
        (connecting(DownstairsInfoConnectionMode.OFFLINE), "is offline"),
        (connecting(DownstairsInfoConnectionMode.FAULTED), "is faulted"),
    ],
)
def test_nothing_is_replaced_while_another_replica_is_not_there(state: Any, reason: str) -> None:
    with pytest.raises(ReplacementRefused, match=f"{OTHERS[0]} {reason}"):
        judge_change(CHANGE, [OLD, *OTHERS], [ACTIVE, state, ACTIVE])


def test_a_target_cannot_be_replaced_by_another_one_of_the_same_volume() -> None:
    change = TargetChange(sub_volume=0, index=0, old=OLD, new=OTHERS[0])
    with pytest.raises(ReplacementRefused, match="are in use"):
        judge_change(change, [OLD, *OTHERS], [ACTIVE] * 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda new: new["sub_volumes"].append(region()), f"volume {ID} has 2 sub-volumes"),
        (lambda new: new.update(sub_volumes=[file()]), "is a file"),
        (lambda new: first(new)["opts"]["target"].pop(), "2 targets"),
        (lambda new: retarget(new, address=OTHERS[0]), "same address"),
        (lambda new: first(new).update(block_size=1024), "must be 512 or 4096"),
        (lambda new: first(new).update(extent_count=0), "at least 1"),
        (lambda new: first(new).update(extent_count=1 << 60), "bytes: at most"),
        (lambda new: first(new).update(generation=-1), "generation is -1"),
        (lambda new: retarget(new, address="localhost:3810"), "'localhost:3810' is not an address: give IP:PORT"),
        (lambda new: retarget(new, address="127.0.0.1"), "'127.0.0.1' is not an address"),
        (lambda new: retarget(new, address="127.0.0.1:65536"), "is not an address"),
        (lambda new: retarget(new, address="[127.0.0.1:3810"), "is not an address"),
        (
            lambda new: new.update(read_only_parent={"type": "url", "id": ID, "block_size": 512, "url": "u"}),
            "not a file",
        ),
    ],
)
def test_volumes_that_this_engine_does_not_support_are_named(
    change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        only_region(as_volume(vcr(changed(volume(), change))))


@pytest.mark.parametrize("address", ["127.0.0.1:3810", "[::1]:3810", "[100::]:9000"])
def test_an_address_is_ipv4_or_ipv6_with_a_port(address: str) -> None:
    assert (
        address
        in only_region(as_volume(vcr(changed(volume(), lambda new: retarget(new, address=address))))).opts.target
    )


@pytest.mark.parametrize("text", ["{", '{"type": "volume"}', '{"type": "nonsense"}', "[]"])
def test_nonsense_is_no_request(text: str) -> None:
    with pytest.raises(ValueError, match="not valid"):
        decode_vcr(text)


async def test_a_replica_is_not_active_from_the_moment_that_it_is_replaced() -> None:
    left, right = socket.socketpair()
    with left, right:
        session = Session(OLD, *await asyncio.open_connection(sock=left))
        replica = Replica(address=NEW, node="node", phase=Phase.ACTIVE, session=session)
        replica.moved.set()
        modes, steps = DownstairsInfoConnectionMode, DownstairsInfoNegotiationStatus
        assert replica.state == DownstairsConnecting(mode=modes.REPLACED, state=steps.WAIT_CONNECT)
        change = TargetChange(sub_volume=0, index=0, old=OLD, new=NEW)
        result = judge_change(change, [NEW, *OTHERS], [replica.state, ACTIVE, ACTIVE])
        assert result is ReplaceResult.STARTED_ALREADY
        session.close()
