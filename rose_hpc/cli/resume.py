"""``rose-hpc resume``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from rose_hpc import rundir
from rose_hpc.cli import options
from rose_hpc.errors import OwnedError, RunError, UsageError
from rose_hpc.journal import read_journal
from rose_hpc.progress import Progress


@click.command("resume")
@options.run
@options.max_iterations
@options.sets
@click.pass_context
def command(ctx: click.Context, run: Path, max_iterations: int | None, sets: tuple[str, ...]) -> None:
    """Go on with a run where its journal ends; with new limits, also with one that is finished.

    A run of a Python program is resumed by running the program again.

    \b
    Example: rose-hpc resume runs/cartpole-7f3a --max-iterations 200
    """
    found = rundir.find(run)
    progress = Progress.of(read_journal(found.journal))
    if rundir.owner_lives(found):
        owner = rundir.read_owner(found) or {}
        raise OwnedError(
            f"{found.path} is being driven by process {owner.get('pid')} on {owner.get('host')}",
            hint=f"see `{found.command('status')}`",
        )
    if progress.run.get("source") == "program":
        if max_iterations is not None or sets:
            raise UsageError(
                "a Python program keeps its own limits",
                hint=f"change {progress.run['argv'][0]}, then resume without options",
            )
        _run_again(found, progress)
    if not found.config.is_file():
        raise RunError(
            f"{found.path} has no config.toml", hint="bring it back from a copy: a run cannot go on without it"
        )
    from rose_hpc import driver

    changed = max_iterations is not None or bool(sets)
    changes = driver.change_run(found, sets, max_iterations) if changed else []
    ctx.exit(driver.drive_shown(found, changes))


def _run_again(run: rundir.RunDir, progress: Progress) -> None:
    """Become the program that made this run."""
    record = progress.run
    os.environ["ROSE_HPC_RUN"] = str(run.path)
    try:
        os.chdir(record["cwd"])
        sys.stdout.flush()
        os.execv(record["interpreter"], [record["interpreter"], *record["argv"]])  # noqa: S606 - the user's own program
    except OSError as error:
        raise RunError(
            f"{record['interpreter']} {' '.join(record['argv'])} cannot be started again: {error}"
        ) from error
