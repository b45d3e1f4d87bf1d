"""Where a run's jobs stand: its files and Slurm's answer, put together. Pure, but for one look at the logs' names.

Files outrank old answers of Slurm: a driver whose heartbeat is fresh runs, and an end that is recorded has come,
whatever the queue says. A job that has left the queue has not therefore succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rose_hpc.progress import Progress
from rose_hpc.report.words import count
from rose_hpc.rundir import RunDir
from rose_hpc.slurm.chain import held
from rose_hpc.slurm.queue import Job, Queue
from rose_hpc.slurm.records import JobRecord

_FINISHED = ("converged", "max_iterations")


@dataclass(frozen=True)
class Verdict:
    """The run's state (contract), and what people should know beside it; ``note`` may be empty."""

    state: str
    note: str = ""


def is_open(progress: Progress, jobs: Sequence[JobRecord]) -> bool:
    """Whether Slurm may know more of these jobs than the run's files do."""
    return bool(_since_end(progress, jobs) if _finished(progress) else jobs)


def decide(progress: Progress, lives: bool, jobs: Sequence[JobRecord], queue: Queue) -> Verdict:
    """The state of a run.

    Args:
        progress: of its journal.
        lives: whether its driver does, by its heartbeat.
        jobs: what was submitted for it.
        queue: Slurm's answer.
    """
    if lives:
        return Verdict("running")
    ended = str(progress.end["state"]) if progress.end is not None else "stopped"
    if _finished(progress):  # a chain's later jobs have nothing left to do; a resumed run's have
        jobs = _since_end(progress, jobs)
    if not jobs:
        return Verdict(ended)
    if queue.error:
        return _from_files(progress, jobs, queue, ended)
    seen = [(record, job) for record in jobs if (job := queue.of(record)) is not None]
    if any(job.running and not _driver_ended(progress, record, jobs) for record, job in seen):
        return Verdict("running")
    if any(job.queued for _, job in seen):
        return Verdict("pending", held(jobs, queue))
    return Verdict(ended, _last_words(progress, jobs[-1], queue.of(jobs[-1])))


def job_facts(jobs: Sequence[JobRecord], queue: Queue) -> list[dict[str, Any]]:
    """Every submitted job as plain data; ``state`` is None for what Slurm no longer knows, or has not said."""
    return [_facts(record, queue.of(record)) for record in jobs]


def node_hours(
    progress: Progress, jobs: Sequence[JobRecord], queue: Queue, learners: Sequence[Progress] = ()
) -> float | None:
    """Node-hours of the run's jobs so far: from first to last record of their drivers, or as Slurm counts if more.

    None for a run without jobs.
    """
    driven = _driven_s(progress, learners)
    total = 0.0
    for record in jobs:
        job = queue.of(record)
        total += record.nodes * max(driven.get(record.job, 0.0), (job.used_s if job else None) or 0.0)
    return round(total / 3600, 6) if jobs else None


def ranks(run: RunDir, progress: Progress) -> dict[str, int]:
    """The current iteration's ranks: how many run (they have a log and no record), are done, and there are in all."""
    names = progress.run.get("environments", ())
    begun = 0
    if "collect" not in progress.stages:
        begun = sum(
            run.log(progress.iteration, "collect", name).exists() for name in names if name not in progress.ranks
        )
    return {"running": begun, "done": len(progress.ranks), "all": len(names)}


def describe_job(facts: Mapping[str, Any]) -> str:
    """A job in one line."""
    if facts["state"] is None:
        return str(facts["job"] or "not numbered yet")
    nodes = count(facts["nodes"], "node")
    text = f"{facts['job']}: {facts['state']}{_in_brackets(facts['reason'])}, {nodes}"
    if facts["left_s"] is not None and facts["state"] == "RUNNING":
        text += f" ({facts['node_list']}), {_clock(facts['left_s'])} left"
    elif facts["start"] and facts["state"] == "PENDING":
        text += f", expected to start {facts['start']}"
    return text


def _facts(record: JobRecord, job: Job | None) -> dict[str, Any]:
    return {
        "job": record.job or (job.job if job else ""),
        "user": record.user,
        "submitted": record.time,
        "state": job.state if job else None,
        "reason": job.reason if job else "",
        "nodes": (job.nodes if job else 0) or record.nodes,
        "node_list": job.node_list if job else "",
        "used_s": job.used_s if job else None,
        "left_s": job.left_s if job else None,
        "start": job.start if job else "",
    }


def _finished(progress: Progress) -> bool:
    return progress.end is not None and progress.end["state"] in _FINISHED


def _since_end(progress: Progress, jobs: Sequence[JobRecord]) -> list[JobRecord]:
    end = progress.end["time"] if progress.end is not None else 0.0
    return [record for record in jobs if record.time > end]


def _driver_ended(progress: Progress, record: JobRecord, jobs: Sequence[JobRecord]) -> bool:
    """Whether the journal has the end of the driver in this job, or in one submitted after it: Slurm is slow to tell.

    A job of a chain may be running, its driver not begun yet, when all there is to see is the end of the one before.
    """
    if progress.end is None:
        return False
    driven = {str(each.get("job")) for each in progress.jobs}
    return any(each.job in driven for each in jobs[jobs.index(record) :])


def _from_files(progress: Progress, jobs: Sequence[JobRecord], queue: Queue, ended: str) -> Verdict:
    note = f"{queue.error}; this is from the files"
    driven = {str(job.get("job")) for job in progress.jobs}
    if any(record.job not in driven for record in _since_end(progress, jobs)):
        return Verdict("pending", note)
    return Verdict(ended, note)


def _last_words(progress: Progress, record: JobRecord, job: Job | None) -> str:
    """What to say of the last job when it is gone and no driver of it has told anything."""
    if not record.job:
        return "sbatch did not say whether it submitted the job; Slurm has none with its comment"
    if record.job in {str(each.get("job")) for each in progress.jobs}:
        return "" if progress.end is not None else f"job {record.job} is gone, and its driver did not say good-bye"
    how = f"{job.state}{_in_brackets(job.reason)}" if job else "it is not in the queue any more"
    return f"job {record.job} ended before its driver began ({how}): see `logs --job {record.job}`"


def _in_brackets(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _driven_s(progress: Progress, learners: Sequence[Progress] = ()) -> dict[str, float]:
    """Seconds from first to last record of the drivers in each job, in the run's journal or in a learner's."""
    spent: dict[str, float] = {}
    for record, last in zip(progress.jobs, progress.lasts, strict=False):
        if job := str(record.get("job") or ""):
            theirs = [
                written
                for learner in learners
                for begun, written in zip(learner.jobs, learner.lasts, strict=False)
                if begun.get("epoch") == record.get("epoch")
            ]
            spent[job] = spent.get(job, 0.0) + max(0.0, last - record["time"], *(t - record["time"] for t in theirs))
    return spent


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
