"""``rose-hpc logs``."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from rose_hpc import rundir
from rose_hpc.cli import options
from rose_hpc.errors import UsageError

_NAME = re.compile(r"iter-(?P<iteration>\d+)-(?P<stage>collect|merge|update|check)(?:-(?P<environment>.+))?\.log")
_POLL_S = 0.5


@click.command("logs")
@options.run
@click.option("-i", "--iteration", type=click.IntRange(min=0), help="Of this iteration; default: the last with any.")
@click.option("-s", "--stage", type=click.Choice(["collect", "merge", "update", "check"]), help="Of this stage.")
@click.option("-e", "--environment", help="Of this environment.")
@click.option(
    "-l", "--learner", type=click.IntRange(min=0), help="Of this learner; default: of all, where there are several."
)
@click.option("-j", "--job", help="What this Slurm job printed: slurm/JOB.out.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is no longer driven.")
@click.option("--list", "listed", is_flag=True, help="Print the files' names only.")
def command(
    run: Path,
    iteration: int | None,
    stage: str | None,
    environment: str | None,
    learner: int | None,
    job: str | None,
    follow: bool,
    listed: bool,
) -> None:
    """Show what the ranks and stages of RUN printed, or its Slurm jobs.

    \b
    Example: rose-hpc logs runs/cartpole-7f3a --iteration 3 --environment env_2
    """
    found = rundir.find(run)
    wanted = {"stage": stage, "environment": environment}

    def select() -> list[Path]:
        if job is not None:
            return _of_job(found, job)
        return [path for each in _learners(found, learner) for path in _select(each, iteration, wanted)]

    if job is not None:
        if iteration is not None or stage is not None or environment is not None:
            raise UsageError("a job's output is of all its iterations", hint="give --job alone")
        _check_job(found, job)
    if follow:
        _follow(found, select)
        return
    paths = select()
    if not paths and job is not None:
        raise UsageError(f"job {job} has printed nothing yet", hint=f"see `{found.command('status')}`")
    if not paths:
        known = ", ".join(sorted({m["environment"] for m in _all_matches(found) if m["environment"]})) or "none yet"
        raise UsageError(
            "there is no such log", hint=f"`{found.command('logs')} --list` lists them; environments: {known}"
        )
    for path in paths:
        if listed:
            click.echo(path)
            continue
        if len(paths) > 1:
            click.echo(f"==> {_shown(found, path)} <==")
        with open(path, errors="replace") as file:
            shutil.copyfileobj(file, sys.stdout)


def _learners(run: rundir.RunDir, number: int | None) -> list[rundir.RunDir]:
    """The run itself, or those of its learners that are asked for."""
    learners = run.learners
    if number is None:
        return [run, *learners]
    if number not in {each.number for each in learners}:
        known = ", ".join(str(each.number) for each in learners) or "none"
        raise UsageError(f"there is no learner {number}", hint=f"learners that have begun: {known}")
    return [each for each in learners if each.number == number]


def _shown(run: rundir.RunDir, path: Path) -> str:
    """The name of a log, with its learner's where it has one."""
    return path.name if path.parent == run.logs else f"{path.parent.parent.name}/{path.name}"


def _all_matches(run: rundir.RunDir) -> list[re.Match[str]]:
    return [match for each in (run, *run.learners) for match in _matches(each).values()]


def _matches(run: rundir.RunDir) -> dict[Path, re.Match[str]]:
    return {path: match for path in sorted(run.logs.glob("*.log")) if (match := _NAME.fullmatch(path.name))}


def _select(run: rundir.RunDir, iteration: int | None, wanted: dict[str, str | None]) -> list[Path]:
    """The logs asked for, by iteration and time; without an iteration, those of the last that has any."""
    matches = {
        path: match
        for path, match in _matches(run).items()
        if all(value is None or match[key] == value for key, value in wanted.items())
    }
    if iteration is None:
        iteration = max((int(match["iteration"]) for match in matches.values()), default=0)
    order = {"collect": 0, "merge": 1, "update": 2, "check": 3}
    paths = [path for path, match in matches.items() if int(match["iteration"]) == iteration]
    return sorted(paths, key=lambda path: (order[matches[path]["stage"]], path.name))


def _of_job(run: rundir.RunDir, job: str) -> list[Path]:
    path = run.slurm / f"{job}.out"
    return [path] if path.is_file() else []


def _check_job(run: rundir.RunDir, job: str) -> None:
    from rose_hpc.slurm.records import read_records

    known = [record.job for record in read_records(run) if record.job]
    if job not in known:
        raise UsageError(f"job {job} is not one of {run.path}", hint=f"its jobs: {', '.join(known) or 'none'}")


def _follow(run: rundir.RunDir, select: Callable[[], list[Path]]) -> None:
    """Print what is there, and what comes, until no driver lives and no job is queued or running."""
    from rose_hpc.slurm.watch import Look
    from rose_hpc.standing import Sight

    shown: dict[Path, int] = {}
    last: Path | None = None
    look = Look(run)
    while True:
        sight = Sight.of(run)
        alive = look(sight.progress, sight.jobs).state in ("running", "pending")
        for path in select():
            with open(path, "rb") as file:
                file.seek(shown.get(path, 0))
                data = file.read()
            if data:
                if path != last:
                    click.echo(f"==> {_shown(run, path)} <==")
                click.echo(data.decode(errors="replace"), nl=False)
                shown[path], last = shown.get(path, 0) + len(data), path
        if not alive:
            return
        time.sleep(_POLL_S)
