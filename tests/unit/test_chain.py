"""When a job of a chain need not begin, and what is said of one that is held."""

from __future__ import annotations

from typing import Any

import pytest

from rose_hpc.slurm.chain import held, nothing_to_do
from rose_hpc.slurm.queue import Job, Queue
from rose_hpc.slurm.records import JobRecord


def record(job: str, time: float, after: str = "") -> JobRecord:
    return JobRecord(job, f"rose-hpc:{job}", time, "me", 0, ("sbatch",), 1, after=after)


def driver(*completed: str, state: str, **facts: Any) -> list[dict[str, Any]]:
    """The records of one driver."""
    return [{"kind": "job"}, *({"kind": kind} for kind in completed), {"kind": "end", "state": state, **facts}]


def journal(*drivers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Their journal; every record takes a second, from 100 on."""
    records = [{"kind": "run"}, *(record for each in drivers for record in each)]
    return [{**record, "time": 100.0 + number, "reason": "why"} for number, record in enumerate(records)]


FAILED = driver("rank", state="failed")
AGAIN = driver(state="failed")
CUT_OFF = driver(state="stopped", walltime=True)
STOPPED = driver(state="stopped")


@pytest.mark.parametrize(
    ("drivers", "words"),
    [
        ([driver("stage", state="converged")], "is finished"),
        ([driver("stage", state="max_iterations")], "is finished"),
        ([FAILED], ""),
        ([FAILED, AGAIN], "ended twice without completing anything in between: why"),
        ([FAILED, driver("rank", state="failed")], ""),
        ([CUT_OFF, CUT_OFF], "ended twice without completing anything in between: why"),
        ([driver("stage", state="stopped", walltime=True), driver("stage", state="stopped", walltime=True)], ""),
        ([AGAIN, CUT_OFF], "ended twice without completing anything in between: why"),
        ([STOPPED, STOPPED], ""),
        ([AGAIN, STOPPED], ""),
        ([AGAIN, [{"kind": "job"}]], ""),
        ([], ""),
    ],
)
def test_a_third_time_would_be_the_same(drivers, words):
    """Finished runs, and those that failed twice in the same place, leave later jobs nothing; all others go on."""
    assert nothing_to_do(journal(*drivers), [record("7", 50.0)], "7") == words


def test_who_submits_after_the_end_means_it():
    """A job that was submitted after the run had ended begins: something was mended, or is to be extended."""
    records = journal(FAILED, AGAIN)
    jobs = [record("7", 50.0), record("8", 500.0)]
    assert nothing_to_do(records, jobs, "8") == ""
    assert nothing_to_do(records, jobs, "9") == ""
    assert nothing_to_do(records, jobs, None) == ""
    assert nothing_to_do(records, jobs, "7") != ""


def job(number: str, state: str, reason: str = "") -> Job:
    return Job(number, state, reason, f"rose-hpc:{number}", None, None, 1, "", "")


def test_a_held_job_is_said_with_what_to_do():
    """Whoever holds a job, its release is named, and what lets the chain go on without it."""
    jobs = [record("7", 1.0), record("8", 2.0, after="7")]
    queue = Queue({"7": job("7", "PENDING", "JobHeldAdmin"), "8": job("8", "PENDING", "Dependency")}, 0.0)
    assert held(jobs, queue) == (
        "job 7 is held (JobHeldAdmin): `scontrol release 7` lets it go on, "
        "`scancel 7` lets job 8 of the chain go on instead"
    )
    assert held(jobs[:1], Queue({"7": job("7", "REQUEUE_HOLD")}, 0.0)) == (
        "job 7 is held (REQUEUE_HOLD): `scontrol release 7` lets it go on"
    )
    assert held(jobs, Queue({"7": job("7", "PENDING", "Resources")}, 0.0)) == ""
