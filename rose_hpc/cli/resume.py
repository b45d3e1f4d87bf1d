"""``rose-hpc resume``."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rose_hpc import ownership, rundir
from rose_hpc.cli import options
from rose_hpc.errors import OwnedError, RunError, UsageError
from rose_hpc.rundir import RunDir
from rose_hpc.standing import Sight

if TYPE_CHECKING:
    from rose_hpc.slurm.submit import Plan


@dataclass(frozen=True)
class Changes:
    """What the command line changes of the run."""

    max_iterations: int | None
    sets: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.max_iterations is not None or bool(self.sets)


@click.command("resume")
@options.run
@options.max_iterations
@options.sets
@options.engine
@click.option(
    "--from-iteration",
    type=click.IntRange(min=0),
    metavar="K",
    help="Make a new run, at --run-dir, that goes on at iteration K of this one.",
)
@click.option(
    "--run-dir", type=click.Path(path_type=Path), help="The directory of the run that --from-iteration makes."
)
@click.option("--here", is_flag=True, help="Go on in this process, though the run was submitted.")
@click.pass_context
def command(
    ctx: click.Context,
    run: Path,
    max_iterations: int | None,
    sets: tuple[str, ...],
    engine: str,
    from_iteration: int | None,
    run_dir: Path | None,
    here: bool,
) -> None:
    """Go on with a run where its journal ends; with new limits, also with one that is finished.

    A run that was submitted goes on in a new job; a Python program is run again. With --from-iteration, a new run
    branches off at an old checkpoint; unchanged, it does the same again.

    \b
    Example: rose-hpc resume runs/cartpole-7f3a --max-iterations 200
             rose-hpc resume runs/cartpole-7f3a --from-iteration 20 --run-dir runs/other --set check.threshold=150
    """
    sight = Sight.of(rundir.find_whole(run))
    changes = Changes(max_iterations, sets)
    again = bool(sight.jobs) and not here and "SLURM_JOB_ID" not in os.environ
    if from_iteration is not None or run_dir is not None:
        if not again and (program := _program(sight)) is not None:
            _refuse_changes(program, changes)
        sight = _branch(sight, from_iteration, run_dir, changes)
    _refuse_owned(sight.run, everywhere=again)
    if again:
        _submit_again(sight, changes)
        return
    program = _program(sight)
    if not changes:
        _leave_if_idle(ctx, sight)
    if program is not None:
        _refuse_changes(program, changes)
        if engine != "auto":
            os.environ["ROSE_HPC_ENGINE"] = engine  # for rose_hpc.execution_backend() in it
        _run_again(sight.run, program)
    if not sight.run.config.is_file():
        raise RunError(
            f"{sight.run.path} has no config.toml", hint="bring it back from a copy: a run cannot go on without it"
        )
    from rose_hpc import driver
    from rose_hpc.slurm.records import take_changes

    noted = driver.change_run(sight.run, sets, max_iterations) if changes else take_changes(sight.run)
    ctx.exit(driver.drive_shown(sight.run, noted, engine, (sight.progress, sight.mark)))


def _refuse_changes(program: Mapping[str, Any], changes: Changes) -> None:
    if changes:
        raise UsageError(
            "a Python program keeps its own limits", hint=f"change {program['argv'][0]}, then resume without options"
        )


def _leave_if_idle(ctx: click.Context, sight: Sight) -> None:
    """Leave where this is a job of a chain that need not begin: no pilot is started for it."""
    from rose_hpc.slurm.chain import nothing_to_do

    if "learners" not in sight.progress.run and sight.run.learners:
        return  # a program with several learners one by one, of which this journal tells only the first
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or sight.progress.end is None:
        return
    if why := nothing_to_do(Sight.of(sight.run, keep=True).everything, sight.jobs, job):
        from rose_hpc.driver import EXIT_CODES

        click.echo(f"{sight.run.path} {why}; this job of its chain has nothing to do")
        ctx.exit(EXIT_CODES[str((sight.progress.end or {})["state"])])


def _refuse_owned(run: RunDir, *, everywhere: bool) -> None:
    """Refuse at once what would be refused later; of an owner elsewhere, who drives finds out whether it lives."""
    owner = ownership.read_owner(run) or {}
    if ownership.owner_lives(run) and (everywhere or owner.get("host") == socket.gethostname()):
        job = f", job {owner['job']}" if owner.get("job") else ""
        raise OwnedError(
            f"{run.path} is driven by process {owner.get('pid')} on {owner.get('host')}{job}",
            hint=f"see `{run.command('status')}`",
        )


def _branch(sight: Sight, iteration: int | None, run_dir: Path | None, changes: Changes) -> Sight:
    """The run that branches off; it is not made where it could not be changed as it is to be."""
    if iteration is None or run_dir is None:
        raise UsageError(
            "--from-iteration and --run-dir go together", hint="a run that goes on where it ended keeps its directory"
        )
    from rose_hpc import driver
    from rose_hpc.branch import branch

    window = None
    if sight.run.config.exists():
        window = driver.changed(sight.run, changes.sets, changes.max_iterations)[0].merge.window
    return Sight.of(branch(sight.run, iteration, run_dir, window))


# -- in a new job ------------------------------------------------------------------------------------------------------


def _submit_again(sight: Sight, changes: Changes) -> None:
    from rose_hpc.cli.submit import show_submitted
    from rose_hpc.slurm.submit import check_idle, check_slurm, submit

    run = sight.run
    if (
        not changes
        and sight.progress.end is not None
        and sight.progress.end["state"] in ("converged", "max_iterations")
    ):
        raise UsageError(
            f"{run.path} is finished: {sight.progress.end['state']}",
            hint="extend it with --max-iterations, or with --set check.threshold=...",
        )
    check_slurm()
    check_idle(run)
    plan = _plan_again(sight, changes)
    show_submitted(run, plan, submit(run, plan), as_json=False)


def _plan_again(sight: Sight, changes: Changes) -> Plan:
    from rose_hpc.slurm.submit import plan_jobs

    run = sight.run
    if (program := _program(sight)) is not None:
        from rose_hpc.slurm.program import change_site, run_name

        if changes.max_iterations is not None:
            raise UsageError("a Python program keeps its own limits", hint=f"change {program['argv'][0]}")
        return plan_jobs(run, change_site(run, changes.sets).slurm, run.path, run_name(Path(program["argv"][0])))
    from rose_hpc import driver
    from rose_hpc.config import load_config
    from rose_hpc.slurm import records

    if changes:
        records.note_changes(run, driver.change_run(run, changes.sets, changes.max_iterations))
    config = load_config(run.config)
    return plan_jobs(run, config.slurm, config.base, config.name)


# -- a Python program --------------------------------------------------------------------------------------------------


def _program(sight: Sight) -> Mapping[str, Any] | None:
    """How the run's program is started, if it is a program's: as it was the last time, or as `submit` noted it."""
    from rose_hpc.slurm.program import read_program

    if sight.progress.run:
        return sight.progress.run if sight.progress.run.get("source") == "program" else None
    return read_program(sight.run)


def _run_again(run: RunDir, program: Mapping[str, Any]) -> None:
    """Become the program that makes this run."""
    interpreter = program.get("interpreter", sys.executable)
    os.environ["ROSE_HPC_RUN"] = str(run.path)
    try:
        os.chdir(program["cwd"])
        sys.stdout.flush()
        os.execv(interpreter, [interpreter, *program["argv"]])  # noqa: S606 - the user's own program
    except OSError as error:
        raise RunError(f"{interpreter} {' '.join(program['argv'])} cannot be started again: {error}") from error
