"""``rose-hpc doctor``."""

from __future__ import annotations

from dataclasses import asdict

import click

from rose_hpc import rundir
from rose_hpc.cli import options

_COLOURS = {"ok": "green", "warning": "yellow", "fault": "red"}


@click.command("doctor")
@click.option("--nodes", type=click.IntRange(min=1), help="Also start one small rank on so many nodes, and ask them.")
@click.option("--partition", help="For --nodes.")
@click.option("--account", help="For --nodes.")
@click.option("--qos", help="For --nodes.")
@click.option("--constraint", help="For --nodes.")
@click.option("--wait", "wait_s", default=300.0, show_default=True, help="Seconds to wait for these nodes.")
@options.as_json
@click.pass_context
def command(ctx: click.Context, /, nodes: int | None, wait_s: float, as_json: bool, **srun: str | None) -> None:
    """Check what a run needs: Slurm, partitions, limits, files, locks, versions. Exit 1 if there is a fault.

    Works without Slurm, too, and says so. Runs lie in ./runs, or $ROSE_HPC_RUNS.

    \b
    Example: rose-hpc doctor --nodes 2 --partition debug
    """
    from rose_hpc.slurm.doctor import examine, examine_nodes

    runs = rundir.runs_folder()
    found = []
    for check in examine(runs):
        found.append(check)
        _show(check, as_json)
    if nodes is not None:
        given = [f"--{name}={value}" for name, value in srun.items() if value]
        for check in examine_nodes(given, nodes, runs, wait_s):
            found.append(check)
            _show(check, as_json)
    if as_json:
        options.print_json([asdict(check) for check in found])
    ctx.exit(1 if any(check.level == "fault" for check in found) else 0)


def _show(check: object, as_json: bool) -> None:
    from rose_hpc.slurm.doctor import Check

    assert isinstance(check, Check)  # noqa: S101 - ours
    if as_json:
        return
    level = click.style(f"{check.level:<8}", fg=_COLOURS[check.level])
    click.echo(f"{level}{check.name}: {check.found}" + (f"; {check.advice}" if check.advice else ""))
