"""What stays on disk: shards until their bank is recorded, banks while the window needs them, policies as asked."""

from __future__ import annotations

from contextlib import suppress

from rose_hpc import failpoints, publishing
from rose_hpc.progress import Progress
from rose_hpc.rundir import RunDir
from rose_hpc.workflow import Workflow


def apply(run: RunDir, workflow: Workflow, progress: Progress, iteration: int, *, sweep: bool) -> None:
    """Remove what need not stay once ``iteration`` is closed; its records must be on the disk by then.

    Args:
        sweep: look at all iterations (a driver's first time), not only at the one that has just left.
    """
    if not workflow.retention.shards:
        for k in sorted(progress.merges) if sweep else [iteration]:
            if progress.has_bank(k):
                _remove_shards(run, workflow, k)
    for k in expired_banks(workflow, progress, iteration, sweep=sweep):
        publishing.remove(run.bank(k))
        failpoints.hit("bank-dropped")
    for k in expired_policies(workflow, progress, iteration, sweep=sweep):
        publishing.remove(run.policy(k))
        failpoints.hit("policy-dropped")
        publishing.remove(run.state(k))
        failpoints.hit("state-dropped")


def _remove_shards(run: RunDir, workflow: Workflow, iteration: int) -> None:
    folder = run.iteration(iteration) / "shards"
    if folder.is_dir():
        for environment in workflow.environments:
            run.shard(iteration, environment.name).unlink(missing_ok=True)
            failpoints.hit("shard-dropped")
        with suppress(OSError):  # not empty: shards that were set aside stay
            folder.rmdir()


def expired_banks(workflow: Workflow, progress: Progress, iteration: int, *, sweep: bool) -> list[int]:
    """Iterations whose banks are needed no more after ``iteration``: the newest of them, or all to ``sweep``."""
    keep = workflow.retention.banks
    if keep == "all":
        return []
    last = iteration - (workflow.window if keep == "window" else max(keep, workflow.window))
    return [k for k in (sorted(progress.merges) if sweep else [last]) if 0 <= k <= last]


def expired_policies(workflow: Workflow, progress: Progress, iteration: int, *, sweep: bool) -> list[int]:
    """Likewise for policies; the newest and the best always stay."""
    keep = workflow.retention.policies
    if keep == "all":
        return []
    operator = workflow.criterion.operator if workflow.criterion else ">"
    best, before = progress.best(operator), progress.best(operator, before=iteration)
    candidates = sorted(progress.updates) if sweep else [iteration - keep, *([before[0]] if before else [])]
    return [k for k in candidates if 0 <= k <= iteration - keep and (best is None or k != best[0])]
