"""Submitting a run's jobs, each exactly once, whatever sbatch answers."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rose_hpc import failpoints
from rose_hpc.errors import RunError, UsageError
from rose_hpc.resources import resource_path
from rose_hpc.rundir import RunDir
from rose_hpc.slurm import records
from rose_hpc.slurm.commands import SUBMIT_TIMEOUT_S, Answer, SlurmAwayError, SlurmError, available, call
from rose_hpc.slurm.options import Submission, sbatch_argv
from rose_hpc.slurm.queue import ask, find_by_token
from rose_hpc.slurm.records import JobRecord
from rose_hpc.slurm.setup import setup_files, write_setup

if TYPE_CHECKING:
    from rose_hpc.config_models import Slurm

log = logging.getLogger(__name__)

#: how often sbatch is called for one job when it is sure that the call before submitted nothing
_ATTEMPTS = 3
#: seconds between looks for a job that sbatch may have submitted: a busy controller shows it late, and to submit
#: another meanwhile would be to submit it twice
_LOOKS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
#: the same where sbatch did not even reach the controller
_FEW_LOOKS = 3
#: seconds after which a job that sbatch did not speak of was not submitted, if Slurm knows none
_TOO_LATE_S = SUBMIT_TIMEOUT_S + sum(_LOOKS_S)
#: Slurm's words -> what to change
_HINTS = (
    ("submit limit", "wait until some of your jobs have ended, or lower slurm.chain"),
    ("job violates accounting", "ask for less: slurm.nodes, slurm.walltime_min, slurm.chain"),
    ("account", "set slurm.account to one that is yours, and may use this partition"),
    ("partition", "set slurm.partition; `rose-hpc doctor` lists the partitions"),
    ("invalid qos", "set slurm.qos to one that you may use"),
    ("time limit", "lower slurm.walltime_min; `rose-hpc doctor` lists the limits"),
    ("memory specification", "lower slurm.mem_gb"),
    ("node configuration", "ask for nodes that exist: slurm.nodes, cpus_per_task, gpus_per_node, mem_gb, constraint"),
    ("more processors", "lower slurm.nodes or slurm.cpus_per_task"),
    ("node count", "change slurm.nodes"),
    ("invalid feature", "correct slurm.constraint"),
    ("reservation", "correct slurm.reservation"),
    ("gres", "correct slurm.gpus_per_node"),
    ("unrecognized option", "correct slurm.extra"),
    ("unknown option", "correct slurm.extra"),
)
#: "12", or "12;cluster"
_JOB_ID = re.compile(r"([0-9]+)(;.*)?")


@dataclass(frozen=True)
class Plan:
    """Everything that submitting will do, decided.

    Attributes:
        slurm: the settings.
        submissions: the jobs in order; each waits for the end of the one before, whose id is not yet known.
        setup: the files the job script reads.
    """

    slurm: Slurm
    submissions: tuple[Submission, ...]
    setup: dict[str, tuple[str, ...]]

    @property
    def script(self) -> Path:
        """The job script."""
        return self.submissions[0].script

    def argvs(self) -> list[tuple[str, ...]]:
        """The command lines, with ``JOBID`` for ids that only Slurm will say."""
        return [
            sbatch_argv(self.slurm, replace(each, after="JOBID" if k else each.after))
            for k, each in enumerate(self.submissions)
        ]


def plan_jobs(run: RunDir, slurm: Slurm, base: Path, name: str) -> Plan:
    """What submitting ``slurm.chain`` jobs for the run will do. Nothing is done.

    Args:
        run: the run; it need not exist yet.
        slurm: the settings.
        base: the folder that relative paths in them count from.
        name: what the jobs are called.

    Raises:
        UsageError: it cannot be done.
    """
    script = resource_path("jobscripts/pilot.sbatch")
    submissions = tuple(Submission(run, script, name, records.new_token()) for _ in range(slurm.chain))
    plan = Plan(slurm, submissions, setup_files(slurm, base))
    plan.argvs()  # its refusals, before anything is done
    return plan


def check_slurm() -> None:
    """Refuse where there is no Slurm.

    Raises:
        UsageError: it names what runs here instead.
    """
    if not available("sbatch"):
        raise UsageError("there is no Slurm on this machine (no sbatch)", hint="`rose-hpc run CONFIG` runs it here")


def check_idle(run: RunDir) -> None:
    """Refuse to submit for a run that has a job already.

    Raises:
        RunError: it names the job.
        SlurmAwayError: Slurm does not answer, so nobody can say.
    """
    found = adopt(run)
    if not found:
        return
    queue = ask(found)
    if queue.error:
        raise SlurmAwayError(f"{queue.error}; nothing was submitted", hint="try again later")
    for record in found:
        if not record.job and record.ours:  # a busy controller shows a job late
            left_s = _TOO_LATE_S - (time.time() - record.time)
            raise SlurmAwayError(
                "whether sbatch submitted a job for this run is not known yet; nothing was submitted",
                hint=f"try again in {max(1.0, left_s):.0f} s",
            )
        job = queue.of(record)
        if job is not None and (job.queued or job.running):
            raise RunError(
                f"job {job.job} of {run.path} is {job.state} already",
                hint=f"follow it with `{run.command('watch')}`, or end it with `{run.command('cancel')}`",
            )


def submit(run: RunDir, plan: Plan) -> list[JobRecord]:
    """Submit the jobs of a plan; their records, in order.

    Raises:
        UsageError: there is no Slurm here.
        SlurmAwayError: it is not known whether a job was submitted; its token is kept and finds it later.
        SlurmError: Slurm refused.
    """
    check_slurm()
    submitted: list[JobRecord] = []
    with _submitting(run):
        failpoints.hit("submit-locked")
        write_setup(run, plan.setup)
        failpoints.hit("submit-set-up")
        for submission in plan.submissions:
            after = submitted[-1].job if submitted else ""
            try:
                submitted.append(_submit_one(plan.slurm, replace(submission, after=after)))
            except SlurmError as error:
                if submitted:
                    jobs = ", ".join(record.job for record in submitted)
                    error.add_note(f"job {jobs} of this run's chain of {len(plan.submissions)} was submitted before")
                raise
    return submitted


def adopt(run: RunDir) -> list[JobRecord]:
    """The records of the run's jobs, those included whose ids sbatch never said, found by their tokens."""
    found = records.read_records(run)
    for record in (each for each in found if not each.job and each.ours):
        job, sure = find_by_token(run, record)
        if job:
            records.note_submitted(run, record, job)
        elif sure and time.time() - record.time > _TOO_LATE_S:  # else it may be on its way
            records.forget_submitting(run, record)
    return records.read_records(run)


def _submit_one(slurm: Slurm, submission: Submission) -> JobRecord:
    run = submission.run
    argv = sbatch_argv(slurm, submission)
    record = records.new_record(submission.token, argv, slurm, submission.after)
    records.note_submitting(run, record)
    failpoints.hit("submit-noted")
    for _ in range(_ATTEMPTS):
        answer = call(argv, SUBMIT_TIMEOUT_S)
        failpoints.hit("submit-answered")
        if answer.ok and (match := _JOB_ID.fullmatch(answer.stdout.strip().rpartition("\n")[2])):
            return records.note_submitted(run, record, match[1])
        if not answer.away and not answer.ok:
            records.forget_submitting(run, record)
            raise SlurmError(f"Slurm refused the job: {answer.words}", hint=_hint(answer))
        looks_s, level = (_LOOKS_S[:_FEW_LOOKS], logging.INFO) if _was_not_sent(answer) else (_LOOKS_S, logging.WARNING)
        log.log(level, "sbatch: %s; looking for the job for up to %.0f s", answer.words, sum(looks_s))
        job, sure = _look_for(run, record, looks_s)
        if job:
            return records.note_submitted(run, record, job)
        if not sure:
            break
    raise _away(run, record, answer, sure)


def _look_for(run: RunDir, record: JobRecord, looks_s: Sequence[float]) -> tuple[str, bool]:
    """As `find_by_token`, again and again."""
    sure = False
    for wait_s in looks_s:
        time.sleep(wait_s)
        job, sure = find_by_token(run, record)
        if job:
            return job, True
        if not sure:
            break
    return "", sure


def _away(run: RunDir, record: JobRecord, answer: Answer, sure: bool) -> SlurmError:
    if sure or _was_not_sent(answer):
        records.forget_submitting(run, record)
        return SlurmError(f"Slurm does not answer ({answer.words}); nothing was submitted", hint="try again later")
    return SlurmAwayError(
        f"Slurm does not answer ({answer.words}); whether a job was submitted is not known yet",
        hint=f"`{run.command('status')}` finds it by its comment {record.token} once Slurm answers",
    )


def _was_not_sent(answer: Answer) -> bool:
    return "connect failure" in answer.words.lower()


def _hint(answer: Answer) -> str:
    text = answer.words.lower()
    return next((hint for words, hint in _HINTS if words in text), "the keys of [slurm] are sbatch's options")


@contextmanager
def _submitting(run: RunDir) -> Iterator[None]:
    """Nobody else submits jobs for this run meanwhile."""
    run.slurm.mkdir(exist_ok=True)
    lock = os.open(run.slurm, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunError(f"another command is submitting jobs of {run.path}", hint="wait until it is done") from None
    finally:
        os.close(lock)
