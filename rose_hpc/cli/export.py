"""``rose-hpc export``."""

from __future__ import annotations

from pathlib import Path

import click

from rose_hpc.cli import options
from rose_hpc.cli.inspect import banks_of


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["minari"]), default="minari", show_default=True)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The dataset's folder, to be made."
)
@options.as_json
def command(run: Path, kind: str, output: Path, as_json: bool) -> None:
    """Write the experience that RUN still holds, or of one shard or bank, as a dataset for others.

    Minari opens it by MINARI_DATASETS_PATH (the folder around it) and its name.

    \b
    Example: rose-hpc export runs/cartpole-7f3a --format minari --output datasets/cartpole-v0
    """
    from rose_hpc.experience.exchange import export_minari

    banks = banks_of(run)
    episodes = export_minari(banks, output)
    if as_json:
        options.print_json({"dataset": str(output), "format": kind, "episodes": episodes, "files": len(banks)})
    else:
        click.echo(f"{output}: {episodes:,} episodes of {len(banks)} file{'s' * (len(banks) != 1)}, for {kind}")
