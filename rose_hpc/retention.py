"""What stays on disk: shards until their bank is recorded, banks while the window needs them, policies as asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rose_hpc import failpoints, publishing
from rose_hpc.errors import RunError
from rose_hpc.progress import Progress
from rose_hpc.rundir import RunDir
from rose_hpc.workflow import Workflow


@dataclass(frozen=True)
class Leaving:
    """What need not stay: files and folders that may be gone already, and folders that go once they are empty."""

    run: RunDir
    paths: list[Path]
    folders: list[Path]


def plan(run: RunDir, workflow: Workflow, progress: Progress, iteration: int, *, sweep: bool) -> Leaving:
    """What need not stay once ``iteration`` is closed.

    Args:
        run, workflow, progress: the run.
        iteration: the last one that is closed.
        sweep: look at all iterations, not only at the one that has just left.
    """
    paths = list(expired(run, workflow, progress, iteration, sweep=sweep))
    return Leaving(run, paths, [run.shard(k, "").parent for k in _merged(progress, iteration, sweep=sweep)])


def remove(leaving: Leaving, before: Callable[[], None] = lambda: None) -> list[str]:
    """Remove it; in any thread.

    Args:
        leaving: of :func:`plan`.
        before: called if there is anything to remove; it brings the records of the iteration to the disk.

    Returns:
        what could not be removed, and why: a run does not end for that.
    """
    there = [path for path in leaving.paths if os.path.lexists(path)]
    if there:
        before()
    problems = []
    for path in there:
        try:
            publishing.drop(path, leaving.run.scratch)
        except RunError as error:
            problems.append(str(error))
        failpoints.hit("expired-dropped")
    for folder in leaving.folders:
        with suppress(OSError):  # not there, or not empty: shards that were set aside stay
            folder.rmdir()
    failpoints.hit("retention-applied")
    return problems


def expired(run: RunDir, workflow: Workflow, progress: Progress, iteration: int, *, sweep: bool) -> Iterator[Path]:
    """The files and folders that need not stay, those included that are gone already."""
    if not workflow.retention.shards:
        for k in _merged(progress, iteration, sweep=sweep):
            if progress.has_bank(k) and (not sweep or (run.iteration(k) / "shards").is_dir()):
                folder = run.shard(k, "").parent
                yield from (folder / f"{environment.name}.h5" for environment in workflow.environments)
    for k in expired_banks(workflow, progress, iteration, sweep=sweep):
        yield run.bank(k)
    for k in expired_policies(workflow, progress, iteration, sweep=sweep):
        yield from (run.policy(k), run.state(k))


def _merged(progress: Progress, iteration: int, *, sweep: bool) -> list[int]:
    return sorted(progress.merges) if sweep else [iteration]


def expired_banks(workflow: Workflow, progress: Progress, iteration: int, *, sweep: bool) -> list[int]:
    """Iterations whose banks are needed no more after ``iteration``: the newest of them, or all to ``sweep``."""
    keep = workflow.retention.banks
    if keep == "all":
        return []
    last = iteration - (workflow.window if keep == "window" else max(keep, workflow.window))
    return [k for k in (sorted(progress.merges) if sweep else [last]) if 0 <= k <= last]


def expired_policies(workflow: Workflow, progress: Progress, iteration: int, *, sweep: bool) -> list[int]:
    """Likewise for policies; the newest, those that late environments may still use, and the best always stay."""
    keep = workflow.retention.policies
    if keep == "all":
        return []
    kept = max(keep, workflow.patience.max_policy_lag + 1)
    best, before = progress.best(), progress.best(before=iteration)
    candidates = sorted(progress.updates) if sweep else [iteration - kept, *([before[0]] if before else [])]
    return [k for k in candidates if 0 <= k <= iteration - kept and (best is None or k != best[0])]
