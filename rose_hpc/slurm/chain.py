"""Jobs that go on where others ended: a chain submitted ahead, and jobs that Slurm requeues. Pure.

Each of them drives the run as `resume` does; here is only when one need not begin, and what to say of one that waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rose_hpc.slurm.queue import Queue
from rose_hpc.slurm.records import JobRecord

Record = Mapping[str, Any]

#: what a driver has completed, if it has completed anything
_PROGRESS = frozenset({"rank", "stage", "checkpoint"})
_HELD_STATES = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})


def nothing_to_do(records: Sequence[Record], jobs: Sequence[JobRecord], job: str | None) -> str:
    """Why the job need not begin; "" if it is to. Only jobs submitted before the run ended are told to leave.

    A run that has ended for good needs no further job. One that failed, or used its walltime up, is gone on with: but
    when that has happened twice without anything completed in between, a third time would be the same.

    Args:
        records: the journal.
        jobs: what was submitted for the run.
        job: Slurm's id of the job that we are in; None outside.
    """
    end = records[-1] if records and records[-1]["kind"] == "end" else None
    if end is None or not any(each.job == job and each.time < end["time"] for each in jobs):
        return ""
    if end["state"] in ("converged", "max_iterations"):
        return "is finished"
    last, before = _last_two(records)
    if _in_vain(last) and not any(record["kind"] in _PROGRESS for record in last) and _in_vain(before):
        return f"ended twice without completing anything in between: {end['reason']}"
    return ""


def _last_two(records: Sequence[Record]) -> tuple[Sequence[Record], Sequence[Record]]:
    """The records of the last driver, and of the one before it."""
    starts = [number for number, record in enumerate(records) if record["kind"] == "job"][-2:]
    if len(starts) < 2:
        return records, ()
    return records[starts[1] :], records[starts[0] : starts[1]]


def _in_vain(records: Sequence[Record]) -> bool:
    """Whether this driver failed, or what it worked on took longer than its whole job."""
    ends = [record for record in records if record["kind"] == "end"]
    return bool(ends) and (ends[-1]["state"] == "failed" or bool(ends[-1].get("walltime")))


def held(jobs: Sequence[JobRecord], queue: Queue) -> str:
    """What to say when a job of the run is held, by its user or the site; "" if none is."""
    found = [(record, job) for record in jobs if (job := queue.of(record)) is not None and job.queued]
    stuck = next((job for _, job in found if job.state in _HELD_STATES or job.reason.startswith("JobHeld")), None)
    if stuck is None:
        return ""
    text = f"job {stuck.job} is held ({stuck.reason or stuck.state}): `scontrol release {stuck.job}` lets it go on"
    after = [record.job for record, _ in found if record.after == stuck.job]
    return text + (f", `scancel {stuck.job}` lets job {after[0]} of the chain go on instead" if after else "")
