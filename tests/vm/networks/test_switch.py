"""Forwarding in a switch: to the card's latest location, despite frames in transit from an earlier one."""

from __future__ import annotations

import pytest

from pytest_propolis.agent.networks.switch import Switch

LEFT, RIGHT = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
EVERYBODY = b"\xff" * 6
HERE, THERE, ELSEWHERE = "here", "there", "elsewhere"


class RecordingAttachment:
    """Records received frames."""

    is_up = True

    def __init__(self, number: int | None, part: str) -> None:
        self.number = number
        self.part = part
        self.frames: list[bytes] = []

    def send(self, port: int, frame: bytes) -> None:
        self.frames.append(frame)


class Parts:
    """A switch with the ports of two cards and trunks to two other parts."""

    def __init__(self) -> None:
        self.switch = Switch()
        self.left, self.right = RecordingAttachment(1, HERE), RecordingAttachment(2, HERE)
        self.there, self.elsewhere = RecordingAttachment(None, THERE), RecordingAttachment(None, ELSEWHERE)
        for attachment in self.attachments:
            self.switch.add(attachment)

    @property
    def attachments(self) -> tuple[RecordingAttachment, ...]:
        return self.left, self.right, self.there, self.elsewhere

    def announce_right(self, attachment: RecordingAttachment) -> None:
        self.switch.receive(EVERYBODY + RIGHT, port=2, attachment=attachment)

    def where_a_frame_to_right_goes(self) -> set[RecordingAttachment]:
        for attachment in self.attachments:
            attachment.frames.clear()
        self.switch.receive(RIGHT + LEFT, port=1, attachment=self.left)
        return {attachment for attachment in self.attachments if attachment.frames}


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_a_frame_goes_where_its_receiver_was_seen_last(parts: Parts) -> None:
    parts.announce_right(parts.there)
    assert parts.where_a_frame_to_right_goes() == {parts.there}
    parts.announce_right(parts.right)
    assert parts.where_a_frame_to_right_goes() == {parts.right}


@pytest.mark.parametrize(("old", "new"), [("there", "right"), ("right", "there"), ("there", "elsewhere")])
def test_a_frame_reaches_a_card_that_has_moved_and_said_nothing_yet(parts: Parts, old: str, new: str) -> None:
    parts.announce_right(getattr(parts, old))
    parts.switch.move_port(2, getattr(parts, new).part)
    assert getattr(parts, new) in parts.where_a_frame_to_right_goes()


@pytest.mark.parametrize(("old", "new"), [("there", "right"), ("right", "there"), ("there", "elsewhere")])
def test_a_late_frame_from_the_old_place_tells_nothing(parts: Parts, old: str, new: str) -> None:
    parts.switch.move_port(2, getattr(parts, new).part)
    parts.announce_right(getattr(parts, new))
    parts.announce_right(getattr(parts, old))
    assert parts.where_a_frame_to_right_goes() == {getattr(parts, new)}


def test_a_card_that_moves_again_is_where_it_is_seen(parts: Parts) -> None:
    parts.switch.move_port(2, THERE)
    parts.announce_right(parts.there)
    parts.switch.move_port(2, None)
    parts.announce_right(parts.right)
    assert parts.where_a_frame_to_right_goes() == {parts.right}


def test_the_place_of_one_card_is_not_that_of_another(parts: Parts) -> None:
    parts.switch.move_port(1, THERE)
    parts.announce_right(parts.right)
    assert parts.where_a_frame_to_right_goes() == {parts.right}
