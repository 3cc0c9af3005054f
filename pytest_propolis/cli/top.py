"""``propolis top``: show what the runs on this machine are doing."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import click
import msgspec

from ..distribution.status.live_files import read_live
from ..distribution.status.screen import fit, run_lines
from ..distribution.status.snapshot import Snapshot

__all__ = ["top"]

PERIOD_S: Final = 1.0

SCREEN_ON: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""The alternate screen, without a cursor; a line that is too long does not wrap."""

SCREEN_OFF: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME: Final = "\x1b[H"
CLEAR_LINE: Final = "\x1b[K"
CLEAR_BELOW: Final = "\x1b[J"
NOTHING: Final = "no run of this user is running here"


@click.command()
@click.option("--once", is_flag=True, help="Print the status once, also to a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print it once, as one line of JSON for each run.")
def top(once: bool, as_json: bool) -> None:
    """Show what this user's runs on this machine are doing: hosts, slots, and what runs or waits.

    On a terminal it is updated every second until q is pressed.
    """
    if as_json:
        for snapshot in read_live():
            click.echo(msgspec.json.encode(snapshot).decode())
    elif once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo("\n".join(_lines(read_live(), shutil.get_terminal_size().columns)))
    else:
        _watch()


def _lines(snapshots: Sequence[Snapshot], width: int) -> Iterator[str]:
    if not snapshots:
        yield fit(NOTHING, width)
    for number, snapshot in enumerate(snapshots):
        if number:
            yield ""
        yield from run_lines(snapshot, width=width, now_s=time.time())


def _watch() -> None:
    with _screen():
        shown: os.terminal_size | None = None
        while True:
            size = _terminal_size()
            lines = list(islice(_lines(read_live(), size.columns), size.lines))
            # Each line is cleared before it is written: behind one that is full, that would take its last character.
            text = "\r\n".join(f"{CLEAR_LINE}{line}" for line in lines)
            rest = f"\r\n{CLEAR_BELOW}" if len(lines) < size.lines else ""
            # Whole only after a change of size: a terminal that is cleared each time flickers.
            first = HOME + CLEAR_BELOW if size != shown else HOME
            sys.stdout.write(f"{first}{text}{rest}")
            sys.stdout.flush()
            shown = size
            if select.select([sys.stdin], [], [], PERIOD_S)[0] and os.read(sys.stdin.fileno(), 16) in (b"q", b""):
                return


def _terminal_size() -> os.terminal_size:
    columns, lines = os.get_terminal_size(sys.stdout.fileno())
    return os.terminal_size((columns or 80, lines or 24))  # a terminal may not know its size


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """Have the whole terminal, with keys as they are pressed; Ctrl-C still interrupts."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        sys.stdout.write(SCREEN_ON)
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(SCREEN_OFF)
        sys.stdout.flush()
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
