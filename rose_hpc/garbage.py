"""What is in a run directory and need not be: by its ``[retention]``, and what killed drivers left unpublished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rose_hpc import publishing, retention
from rose_hpc.disk import disk_use
from rose_hpc.errors import RunError
from rose_hpc.journal import read_journal
from rose_hpc.ownership import Ownership
from rose_hpc.progress import Progress
from rose_hpc.refusals import cause_of
from rose_hpc.rundir import RunDir
from rose_hpc.workflow import Criterion, Environment, Work, Workflow, from_config


@dataclass(frozen=True)
class Garbage:
    """A file or folder that need not stay.

    Attributes:
        path: where.
        bytes: of the disk.
        problem: why it could not be removed; "" otherwise.
    """

    path: Path
    bytes: int
    problem: str = ""


def find(run: RunDir, *, driven: bool = False) -> list[Garbage]:
    """Everything that need not stay. Nothing is removed.

    Args:
        run: where.
        driven: somebody works with what is not published yet.

    Raises:
        RunError: the journal is damaged.
    """
    paths = [
        path
        for each in (run, *run.learners)
        for path in _paths(each, Progress.of(read_journal(each.journal)), driven=driven)
    ]
    return [Garbage(path, _size(path)) for path in paths if path.exists()]


def collect(run: RunDir) -> list[Garbage]:
    """Remove it.

    Raises:
        OwnedError: a driver lives, which does so itself.
    """
    ownership = Ownership(run)
    try:
        return [_removed(garbage, run) for garbage in find(run)]
    finally:
        ownership.release()


def _removed(garbage: Garbage, run: RunDir) -> Garbage:
    try:
        if garbage.path.parent.name == run.scratch.name:
            publishing.remove(garbage.path)
        else:
            publishing.drop(garbage.path, run.scratch)
    except RunError as error:
        return replace(garbage, problem=cause_of(error.__cause__ or error))
    return garbage


def _paths(run: RunDir, progress: Progress, *, driven: bool) -> Iterator[Path]:
    if progress.iteration and (workflow := _workflow(run, progress.run)) is not None:
        yield from retention.expired(run, workflow, progress, progress.iteration - 1, sweep=True)
    if driven:
        return
    if run.scratch.is_dir():
        yield from sorted(run.scratch.iterdir())
    yield from sorted(run.path.glob(".*.tmp"))


def _workflow(run: RunDir, facts: Mapping[str, Any]) -> Workflow | None:
    """What retention asks of a workflow: a configuration's, or what the journal says of a program's."""
    if facts.get("source") != "program":
        from rose_hpc.config import load_config

        return from_config(load_config((run.within or run).config))  # of a sweep, learners differ in parameters only
    environments = tuple(Environment(name, Work()) for name in facts["environments"])
    criterion = None
    if facts.get("metric"):
        criterion = Criterion(Work(), facts["metric"], facts["operator"], facts["threshold"])
    window = int(facts.get("window", 1))
    return Workflow(facts["name"], run.path, environments, Work(), criterion, max_iterations=1, window=window)


def _size(path: Path) -> int:
    return disk_use(path, 10.0).bytes if path.is_dir() else path.stat().st_blocks * 512
