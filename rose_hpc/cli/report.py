"""``rose-hpc report``."""

from __future__ import annotations

from pathlib import Path

import click

from rose_hpc import rundir
from rose_hpc.cli import options


@click.command("report")
@options.run
@click.option("--output", type=click.Path(path_type=Path), help="The file; default: report.html in the run.")
def command(run: Path, output: Path | None) -> None:
    """Write one page about RUN: rewards, returns, a timeline, speed, failures, node-hours. It needs no network.

    \b
    Example: rose-hpc report runs/cartpole-7f3a --output cartpole.html
    """
    from rose_hpc.report.html import write_report

    click.echo(write_report(rundir.find(run), output))
