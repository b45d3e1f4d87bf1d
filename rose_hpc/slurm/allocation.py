"""What a process in a job asks Slurm of that job: once at its start, and once more when it is warned."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from rose_hpc.errors import UsageError
from rose_hpc.slurm.commands import available, call


def job_end(environ: Mapping[str, str], *, changed: bool = False) -> float | None:
    """When the job that ``environ`` is of must have ended (Unix seconds); None where Slurm does not say.

    Args:
        environ: the environment to look at.
        changed: it may be another end than at the job's start, which the environment would not know.
    """
    if (told := environ.get("SLURM_JOB_END_TIME")) and not changed:  # Slurm 23.02 and later
        return float(told)
    if not environ.get("SLURM_JOB_ID") or not available("scontrol"):
        return None
    answer = call(["scontrol", "show", "job", "--oneliner", environ["SLURM_JOB_ID"]])
    found = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\b", answer.stdout)
    return time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) if found else None


def driver_end(engine_end: float | None, environ: Mapping[str, str]) -> float | None:
    """When a driver must have ended: with its engine, with its job, and as ``ROSE_HPC_DEADLINE`` tells it.

    The variable is for batch systems that are not Slurm, and for drivers that are a task of another run.

    Raises:
        UsageError: the variable holds no time.
    """
    told = environ.get("ROSE_HPC_DEADLINE")
    try:
        ends = [engine_end if engine_end is not None else job_end(environ), float(told) if told else None]
    except ValueError:
        raise UsageError(f"ROSE_HPC_DEADLINE is {told!r}", hint="it must be a time in Unix seconds") from None
    return min((end for end in ends if end is not None), default=None)
