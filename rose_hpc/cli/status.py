"""``rose-hpc status``."""

from __future__ import annotations

from pathlib import Path

import click

from rose_hpc import rundir, standing
from rose_hpc.cli import options
from rose_hpc.errors import RunError


@click.command("status")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@options.as_json
def command(run: Path | None, as_json: bool) -> None:
    """Show where RUN stands, or all runs in ./runs (or $ROSE_HPC_RUNS).

    \b
    Example: rose-hpc status runs/cartpole-7f3a --json
    """
    if run is not None:
        sight = standing.Sight.of(rundir.find(run))
        facts = standing.standing_of(sight, standing.ask_for([sight]), disk=True)
        options.print_json(facts) if as_json else click.echo(standing.describe(facts))
        return
    sights = []
    for entry in rundir.find_all():
        try:
            sights.append(standing.Sight.of(entry))
        except RunError as error:  # one damaged run must not hide the others
            click.echo(f"rose-hpc: warning: {error}", err=True)
    queue = standing.ask_for(sights)  # once, for all of them
    found = [standing.standing_of(sight, queue) for sight in sights]
    if as_json:
        options.print_json(found)
    elif found:
        click.echo(standing.table(found))
    else:
        click.echo(f"no runs in {rundir.runs_folder()}; `rose-hpc run CONFIG` makes one")
