"""``propolis durations``: merge files of test durations."""

from __future__ import annotations

from pathlib import Path

import click

from ..distribution.durations_file import durations_text, read_durations

__all__ = ["durations"]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File for the result; it may be one of FILES.")
def durations(files: tuple[Path, ...], output: Path | None) -> None:
    """Merge FILES that `pytest --propolis-write-durations` wrote.

    If several files have a value for a test, the last one counts.
    """
    merged: dict[str, float] = {}
    for file in files:
        merged |= read_durations(file)
    text = durations_text(merged)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text)
