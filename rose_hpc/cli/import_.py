"""``rose-hpc import``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from rose_hpc.cli import options


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path), metavar="FILE|DATASET")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The shard to write.")
@click.option("--environment", help="The name of the environment that it came from.")
@options.as_json
def command(source: Path, output: Path, environment: str | None, as_json: bool) -> None:
    """Make a shard of an HDF5 file with columns at its root, or of a Minari dataset (its folder, or its name).

    The source is parsed in a process of its own, with limits, and never changed.

    \b
    Example: rose-hpc import D4RL/door/human-v2 --output door.h5
    """
    from rose_hpc.experience.foreign import import_foreign

    info = import_foreign(_place(source), output, {"environment": environment} if environment else None)
    if as_json:
        options.print_json(info.to_json())
    else:
        click.echo(f"{output}: a shard of {info.rows:,} rows, {', '.join(info.columns)}")


def _place(source: Path) -> Path:
    """The path itself, or the dataset of that name where Minari keeps its own."""
    store = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    return source if source.exists() or not (store / source).is_dir() else store / source
