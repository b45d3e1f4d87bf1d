"""What Slurm says of our jobs: one squeue for all of them, and sacct, where there is one, for those that left."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from rose_hpc.rundir import RunDir
from rose_hpc.slurm.commands import Answer, available, call
from rose_hpc.slurm.records import JobRecord, read_records

#: id, state, reason, used, left, nodes, CPUs, node list, expected start; last the comment, which may hold anything
_FORMAT = "%A|%T|%r|%M|%L|%D|%C|%N|%S|%k"
_FIELDS = _FORMAT.count("|")

#: states of a job that waits for nodes, or for its turn again
QUEUED = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
#: states of a job that has nodes
RUNNING = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
#: nodes are still being cleaned up; the job itself has ended
LEAVING = frozenset({"COMPLETING"})


@dataclass(frozen=True)
class Job:
    """A job as Slurm sees it.

    Attributes:
        job, state, reason, token: its id, state (long form), why it waits or ended, and comment.
        used_s, left_s: seconds it has run, and has until its walltime; None: not known, or no limit.
        nodes: how many it has or wants.
        node_list: their names, as Slurm writes them; empty before it starts.
        start: when it began, or is expected to (local time, Slurm's words); empty if that is not known.
    """

    job: str
    state: str
    reason: str
    token: str
    used_s: float | None
    left_s: float | None
    nodes: int
    node_list: str
    start: str

    @property
    def queued(self) -> bool:
        """Whether it waits."""
        return self.state in QUEUED

    @property
    def running(self) -> bool:
        """Whether it has nodes."""
        return self.state in RUNNING

    @property
    def alive(self) -> bool:
        """Whether it waits, has nodes, or is being cleaned up."""
        return self.queued or self.running or self.state in LEAVING


@dataclass(frozen=True)
class Queue:
    """One answer of squeue.

    Attributes:
        jobs: by id.
        asked_at: Unix seconds.
        error: why there is none; empty when Slurm answered.
    """

    jobs: dict[str, Job]
    asked_at: float
    error: str = ""

    def of(self, record: JobRecord) -> Job | None:
        """The job of a record, known by its comment (ids are used again when a cluster is set up anew)."""
        if record.job:
            job = self.jobs.get(record.job)
            return job if job is not None and job.token == record.token else None
        return next((job for job in self.jobs.values() if job.token == record.token), None)


#: what there is to say where nothing was asked
NOT_ASKED = Queue({}, 0.0, "not asked")


def ask(records: Iterable[JobRecord]) -> Queue:
    """The jobs of those who submitted ``records``: one call, however many runs and jobs.

    A machine without Slurm, and a controller that does not answer, are answers too.
    """
    users = sorted({str(record.uid) for record in records})
    if not users:
        return NOT_ASKED
    if not available("squeue"):
        return Queue({}, time.time(), "there is no squeue on this machine")
    return read_queue(
        call(("squeue", "--noheader", "--states=all", f"--user={','.join(users)}", f"--format={_FORMAT}"))
    )


def read_queue(answer: Answer) -> Queue:
    """The jobs in squeue's answer; lines that are not ours to understand are left out."""
    if not answer.ok:
        return Queue({}, time.time(), f"Slurm does not answer: {answer.words}")
    jobs = (_parse(line) for line in answer.stdout.splitlines())
    return Queue({job.job: job for job in jobs if job is not None}, time.time())


def _parse(line: str) -> Job | None:
    fields = line.split("|", _FIELDS)
    if len(fields) != _FIELDS + 1 or not fields[0].strip().isdigit():
        return None
    job, state, reason, used, left, nodes, _, names, start, comment = (field.strip() for field in fields)
    return Job(
        job=job,
        state=state,
        reason="" if reason == "None" else reason,
        token=comment,
        used_s=seconds(used),
        left_s=seconds(left),
        nodes=int(nodes) if nodes.isdigit() else 0,
        node_list=names,
        start="" if start == "N/A" else start,
    )


def seconds(text: str) -> float | None:
    """``[D-][[HH:]MM:]SS`` in seconds; None for UNLIMITED, INVALID, NOT_SET and the like."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or not (days.isdigit() or not days) or len(parts) > 3:
        return None
    total = 0
    for part in parts:
        total = total * 60 + int(part)
    return float(total + 86400 * int(days or 0))


def find_by_token(run: RunDir, record: JobRecord) -> tuple[str, bool]:
    """The id of the job with this token, or ""; and whether Slurm could say so for sure.

    squeue knows it while it is there and some minutes longer; sacct, where there is one, for ever.
    """
    queue = ask([record])
    if job := queue.of(record):
        return job.job, True
    if accounted := _in_accounting(run, record):
        return accounted, True
    return "", not queue.error


def is_requeued(job: str) -> bool | None:
    """Whether Slurm would requeue the job; None where it does not say. Sites may refuse what was asked for."""
    if not available("scontrol"):
        return None
    found = re.search(r"\bRequeue=([01])\b", call(("scontrol", "show", "job", "--oneliner", job)).stdout)
    return None if found is None else found[1] == "1"


def _in_accounting(run: RunDir, record: JobRecord) -> str:
    if not available("sacct"):
        return ""
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.time - 60))  # clocks differ
    asked = (f"--starttime={since}", f"--user={record.uid}", "--format=JobIDRaw,WorkDir,Comment")
    answer = call(("sacct", "-X", "--noheader", "--parsable2", *asked))
    if not answer.ok:  # "Slurm accounting storage is disabled": a site without it
        return ""
    submitted = {known.job for known in read_records(run)}
    for line in answer.stdout.splitlines():
        job, _, rest = line.partition("|")
        folder, _, comment = rest.rpartition("|")
        # the comment is kept only by sites that ask for it; no other run's job works in this folder
        if job.isdigit() and job not in submitted and (comment == record.token or folder == str(run.path)):
            return job
    return ""
