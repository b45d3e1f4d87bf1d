"""``rose-hpc submit``."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rose_hpc import rundir
from rose_hpc.cli import options
from rose_hpc.errors import RoseHpcError, UsageError
from rose_hpc.report.words import count
from rose_hpc.rundir import RunDir

if TYPE_CHECKING:
    from rose_hpc.config import Config
    from rose_hpc.config_models import Slurm
    from rose_hpc.slurm.records import JobRecord
    from rose_hpc.slurm.site import Site
    from rose_hpc.slurm.submit import Plan


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    what: Path
    arguments: tuple[str, ...]
    site: Path | None
    run_dir: Path | None
    seed: int | None
    max_iterations: int | None
    sets: tuple[str, ...]

    @property
    def is_program(self) -> bool:
        return self.what.suffix == ".py"


@click.command("submit")
@click.argument("what", metavar="CONFIG|PROGRAM.py", type=click.Path(path_type=Path))
@click.argument("arguments", metavar="[-- ARGUMENT...]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--config",
    "site",
    type=click.Path(path_type=Path),
    help="A site profile: a file with [slurm] and [pilot], or the name of a shipped one. CONFIG's own keys win.",
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run directory itself; default: runs/NAME-xxxx.")
@click.option("--seed", type=click.IntRange(min=0, max=2**63 - 1), help="The seed all others come from.")
@options.max_iterations
@options.sets
@click.option("--dry-run", is_flag=True, help="Print what would be submitted, and do nothing.")
@options.as_json
def command(dry_run: bool, as_json: bool, **asked: Any) -> None:
    """Submit a job that runs CONFIG, or a Python program of yours, in an allocation.

    The terminal can be closed then. ARGUMENTs are the program's own.

    \b
    Example: rose-hpc submit configs/cartpole.toml --set slurm.nodes=3 --set slurm.walltime_min=30
             rose-hpc submit train.py --config site.toml -- --learning-rate 0.1
    """
    from rose_hpc.slurm.submit import check_slurm, submit

    request = Request(**asked)
    prepared = _of_program(request) if request.is_program else _of_config(request)
    if dry_run:
        _show_plan(prepared.plan(_future_run(prepared.name, request.run_dir)), as_json)
        return
    check_slurm()
    run = prepared.make(request)
    try:
        plan = prepared.plan(run)
        submitted = submit(run, plan)
    except RoseHpcError as error:
        _discard(run, error)
        raise
    show_submitted(run, plan, submitted, as_json=as_json)


@dataclass(frozen=True)
class _Prepared:
    """What is to run, read and checked; nothing has been made."""

    name: str
    slurm: Slurm
    base: Path
    config: Config | None = None
    site: Site | None = None

    def plan(self, run: RunDir) -> Plan:
        from rose_hpc.slurm.submit import plan_jobs

        return plan_jobs(run, self.slurm, self.base, self.name)

    def make(self, request: Request) -> RunDir:
        if self.config is not None:
            from rose_hpc import driver

            return driver.make_run(self.config, request.run_dir, request.what)
        from rose_hpc.slurm.program import write_program
        from rose_hpc.slurm.site import dump_site

        assert self.site is not None  # noqa: S101 - it is one of the two
        run = rundir.create(self.name, request.run_dir)
        write_program(run, request.what.absolute(), request.arguments, dump_site(self.site))
        return run


def _of_config(request: Request) -> _Prepared:
    from rose_hpc.config import check_scripts, load_config
    from rose_hpc.slurm.site import site_path, under_config

    if request.arguments:
        raise UsageError(
            f"unexpected argument {request.arguments[0]!r}", hint="only a Python program takes arguments of its own"
        )
    site = under_config(site_path(request.site), request.what) if request.site else []
    config = load_config(
        request.what, sets=[*site, *request.sets], seed=request.seed, max_iterations=request.max_iterations
    )
    check_scripts(config, request.what)
    _check_room(config)
    return _Prepared(config.name, config.slurm, config.base, config=config)


def _check_room(config: Config) -> None:
    """Refuse before submitting what the job's own size, where it is said, can never hold."""
    from rose_hpc.machine import Shape
    from rose_hpc.room import Room, check_fits
    from rose_hpc.workflow import from_config

    slurm = config.slurm
    cores = math.inf if slurm.cpus_per_task is None else slurm.cpus_per_task * (slurm.ntasks_per_node or 1)
    memory_mb = math.inf if slurm.mem_mb is None else slurm.mem_mb
    gpus = math.inf if slurm.gpus_per_node is None else slurm.gpus_per_node
    check_fits(from_config(config), Room(Shape(cores, memory_mb, gpus), slurm.nodes))


def _of_program(request: Request) -> _Prepared:
    from rose_hpc.slurm.program import check_program, run_name
    from rose_hpc.slurm.site import load_site, site_path

    check_program(request.what)
    if request.seed is not None or request.max_iterations is not None:
        raise UsageError(
            f"{request.what} keeps its own seed and limits", hint="give them as arguments of its own, behind --"
        )
    site = load_site(site_path(request.site) if request.site else None, request.sets)
    return _Prepared(run_name(request.what), site.slurm, Path.cwd(), site=site)


def _future_run(name: str, run_dir: Path | None) -> RunDir:
    return RunDir(rundir.check_path(run_dir or rundir.runs_folder() / f"{name}-xxxx"))


def _discard(run: RunDir, error: RoseHpcError) -> None:
    """Take back a run that never began, when no job of it can be anywhere."""
    from rose_hpc.slurm.records import read_records

    if run.journal.stat().st_size or read_records(run):
        error.add_note(f"the run directory is {run.path}")
        return
    shutil.rmtree(run.path)


def describe_plan(plan: Plan) -> dict[str, Any]:
    """A plan as plain data."""
    return {
        "run": str(plan.submissions[0].run.path),
        "argv": [list(argv) for argv in plan.argvs()],
        "script": str(plan.script),
        "setup": {name: list(lines) for name, lines in plan.setup.items()},
    }


def _show_plan(plan: Plan, as_json: bool) -> None:
    facts = describe_plan(plan)
    if as_json:
        options.print_json({**facts, "jobs": []})
        return
    for argv in facts["argv"]:
        click.echo(shlex.join(argv))
    click.echo(f"\n# {facts['run']}/slurm/setup/")
    for name, lines in facts["setup"].items():
        click.echo(f"# {name}: {' '.join(lines)}")
    click.echo(f"\n# {facts['script']}\n{plan.script.read_text()}", nl=False)


def _warn_of_no_requeue(plan: Plan, submitted: list[JobRecord]) -> None:
    """Say it where the site does not requeue what asked to be: the chain goes on all the same."""
    from rose_hpc.slurm.queue import is_requeued

    if plan.slurm.requeue and is_requeued(submitted[0].job) is False:
        goes_on = "the jobs after it go on" if len(submitted) > 1 else "set slurm.chain to go on in further jobs"
        click.echo(f"warning: this site will not requeue job {submitted[0].job}; {goes_on}", err=True)


def show_submitted(run: RunDir, plan: Plan, submitted: list[JobRecord], *, as_json: bool) -> None:
    """Say what was submitted; the last line is the run directory when nobody reads it on a terminal (contract)."""
    _warn_of_no_requeue(plan, submitted)
    if as_json:
        argvs = [list(record.argv) for record in submitted]
        options.print_json({**describe_plan(plan), "argv": argvs, "jobs": [record.job for record in submitted]})
        return
    for record in submitted:
        after = f", once job {record.after} has ended" if record.after else ""
        nodes = count(record.nodes, "node")
        click.echo(f"submitted job {record.job}: {nodes}{after}")
    if sys.stdout.isatty():
        for verb in ("status", "watch", "logs", "cancel"):
            click.echo(f"  {verb:<8} {run.command(verb)}")
    else:
        click.echo(run.path)
