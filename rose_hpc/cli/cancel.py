"""``rose-hpc cancel``."""

from __future__ import annotations

from pathlib import Path

import click

from rose_hpc import rundir
from rose_hpc.cli import options


@click.command("cancel")
@options.run
@options.as_json
def command(run: Path, as_json: bool) -> None:
    """End everything of RUN, and nothing else: its jobs, and its driver on this host. The run can be resumed.

    Returns when they are gone.

    \b
    Example: rose-hpc cancel runs/cartpole-7f3a
    """
    from rose_hpc.slurm.cancel import cancel

    found = rundir.find_whole(run)
    ended = cancel(found)
    if as_json:
        options.print_json({"run": str(found.path), "jobs": list(ended.jobs), "driver": ended.driver})
        return
    if ended.jobs:
        click.echo(f"cancelled job {', '.join(ended.jobs)}")
    if ended.driver is not None:
        click.echo(f"ended its driver, process {ended.driver}")
    if not ended.jobs and ended.driver is None:
        click.echo(f"nothing of {found.path} is queued or running")
