"""A figure: a measured value, its floor, and its target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

__all__ = ["Figure", "table"]

HEADINGS = ("figure", "measured", "floor", "ratio", "bound", "met")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table. Columns that do not apply are empty.

    :param floor: the same, done by hand or without the plugin, in the same run.
    :param ratio: measured against floor.
    :param bound: what it is to reach.
    :param met: whether it does; None for what only explains another figure.
    """

    name: str
    measured: str = ""
    floor: str = ""
    ratio: str = ""
    bound: str = ""
    met: bool | None = None


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as a Markdown table."""
    rows = [[*astuple(figure)[:-1], _verdict(figure.met)] for figure in figures]
    widths = [max(len(cell) for cell in column) for column in zip(HEADINGS, *rows, strict=True)]
    lines = [_line(HEADINGS, widths), _line(["-" * width for width in widths], widths)]
    return "\n".join(lines + [_line(row, widths) for row in rows])


def _verdict(met: bool | None) -> str:
    return "" if met is None else "yes" if met else "NO"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"
