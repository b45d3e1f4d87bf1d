"""Ending everything of one run, and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rose_hpc import ownership
from rose_hpc.errors import RunError, UsageError
from rose_hpc.rundir import RunDir
from rose_hpc.slurm.commands import SlurmAwayError, SlurmError, call
from rose_hpc.slurm.queue import Job, Queue, ask
from rose_hpc.slurm.records import JobRecord, read_records
from rose_hpc.slurm.submit import adopt

#: Slurm's KillWait is 30 s by default, and its nodes are cleaned up after that
_JOB_GONE_S = 120.0
_DRIVER_GONE_S = 20.0


@dataclass(frozen=True)
class Cancelled:
    """What was ended: jobs, and the process id of a driver on this host (None: there was none)."""

    jobs: tuple[str, ...]
    driver: int | None


def cancel(run: RunDir) -> Cancelled:
    """Cancel every job of the run, end its driver on this host, and wait until both are gone.

    Raises:
        UsageError: a job or driver that is not ours to end.
        SlurmAwayError: Slurm does not answer; nothing was cancelled.
        SlurmError: Slurm refused, or they are not gone in time.
    """
    jobs = _jobs(run)
    if jobs:
        _scancel(jobs)
    driver = _end_driver(run, {job.job for job in jobs})
    if jobs:
        _wait_for_jobs(run, jobs)
    if driver is not None and not _gone(lambda: not ownership.owner_lives(run), _DRIVER_GONE_S):
        raise RunError(f"process {driver} still drives {run.path}", hint=f"end it with kill -9 {driver}")
    return Cancelled(tuple(job.job for job in jobs), driver)


def _jobs(run: RunDir) -> list[Job]:
    """The run's jobs that wait, run, or are being cleaned up; known by their comments, not only by their ids."""
    if not read_records(run):
        return []
    records = adopt(run)
    queue = _asked(run, records)
    alive = [(record, job) for record in records if (job := queue.of(record)) is not None and job.alive]
    if foreign := [(record, job) for record, job in alive if not record.ours]:
        record, job = foreign[0]
        raise UsageError(f"job {job.job} of {run.path} is {record.user}'s, not yours", hint=f"ask {record.user}")
    return [job for _, job in alive]


def _asked(run: RunDir, records: list[JobRecord]) -> Queue:
    queue = ask(records)
    if queue.error:
        raise SlurmAwayError(f"{queue.error}; nothing of {run.path} was cancelled", hint="try again later")
    return queue


def _scancel(jobs: list[Job]) -> None:
    answer = call(("scancel", *(job.job for job in jobs)))
    if answer.away:
        raise SlurmAwayError(f"Slurm does not answer ({answer.words})", hint="try again: nothing is cancelled twice")
    if not answer.ok and "invalid job id" not in answer.words.lower():  # that one has just ended
        raise SlurmError(f"Slurm did not cancel job {', '.join(job.job for job in jobs)}: {answer.words}")


def _wait_for_jobs(run: RunDir, jobs: list[Job]) -> None:
    records = read_records(run)
    last: list[Job] = []

    def gone() -> bool:
        queue = ask(records)
        if queue.error:
            return False
        last[:] = [seen for job in jobs if (seen := queue.jobs.get(job.job)) and seen.token == job.token and seen.alive]
        return not last

    if not _gone(gone, _JOB_GONE_S):
        states = ", ".join(f"{job.job} is {job.state}" for job in last) or "Slurm does not answer"
        raise SlurmError(
            f"cancelled, but not gone after {_JOB_GONE_S:g} s: {states}", hint=f"see `{run.command('status')}`"
        )


def _end_driver(run: RunDir, cancelled: set[str]) -> int | None:
    """Tell a driver that is not in one of the cancelled jobs to end, as Ctrl-C would."""
    owner = ownership.read_owner(run) or {}
    if not ownership.owner_lives(run) or str(owner.get("job")) in cancelled:
        return None
    pid = int(owner["pid"])
    if owner["host"] != socket.gethostname():
        raise UsageError(f"{run.path} is driven by process {pid} on {owner['host']}", hint="cancel it on that host")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return None
    except PermissionError:
        raise UsageError(f"{run.path} is driven by process {pid}, which is not yours") from None
    return pid


def _gone(check: Callable[[], bool], seconds: float) -> bool:
    """Whether ``check`` comes true in time; asked less and less often."""
    end = time.monotonic() + seconds
    for wait_s in _intervals():
        if check():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(wait_s)
    return False


def _intervals() -> Iterator[float]:
    interval = 0.25
    while True:
        yield interval
        interval = min(5.0, interval * 1.5)
