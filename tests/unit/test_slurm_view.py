"""What a run's files and Slurm's answer say together."""

from __future__ import annotations

import os

import pytest

from rose_hpc.progress import Progress
from rose_hpc.slurm.commands import Answer
from rose_hpc.slurm.queue import Queue, read_queue, seconds
from rose_hpc.slurm.records import JobRecord
from rose_hpc.slurm.view import _driven_s, decide, describe_job, is_open, job_facts, node_hours

RUN = {"kind": "run", "name": "toy", "environments": ["a"], "time": 90.0}


def record(job: str, time: float = 100.0, nodes: int = 2) -> JobRecord:
    return JobRecord(job, f"rose-hpc:{job}", time, "me", os.getuid(), ("sbatch",), nodes)


def queue(*jobs: tuple[str, str, str], used: str = "0:00") -> Queue:
    """An answer with these (id, state, reason), all of them ours."""
    lines = [f"{job}|{state}|{reason}|{used}|30:00|2|4|n[1-2]|N/A|rose-hpc:{job}" for job, state, reason in jobs]
    return read_queue(Answer(("squeue",), 0, "\n".join(lines), ""))


def progress(*records: dict) -> Progress:
    return Progress.of([RUN, *records])


AWAY = read_queue(Answer(("squeue",), 1, "", "slurm_load_jobs error: Unable to contact slurm controller"))
BEGUN = {"kind": "job", "job": "7", "time": 110.0}
CONVERGED = {"kind": "end", "state": "converged", "reason": "", "time": 120.0}
STOPPED = {"kind": "end", "state": "stopped", "reason": "", "time": 120.0}
PENDING = ("7", "PENDING", "Resources")
RUNNING = ("7", "RUNNING", "None")


@pytest.mark.parametrize(
    ("records", "lives", "jobs", "answer", "state"),
    [
        ([], False, [], queue(), "stopped"),
        ([], False, [record("7")], queue(PENDING), "pending"),
        ([], False, [record("7")], queue(RUNNING), "running"),
        ([BEGUN], True, [record("7")], AWAY, "running"),
        ([BEGUN], False, [record("7")], queue(RUNNING), "running"),
        ([BEGUN], False, [record("7")], queue(), "stopped"),
        ([BEGUN, STOPPED], False, [record("7")], queue(RUNNING), "stopped"),
        ([BEGUN, STOPPED], False, [record("7")], queue(PENDING), "pending"),
        ([BEGUN, STOPPED], False, [record("7"), record("8")], queue(("8", "PENDING", "Dependency")), "pending"),
        ([BEGUN, STOPPED], False, [record("7"), record("8")], queue(("8", "RUNNING", "None")), "running"),
        ([{**BEGUN, "job": "8"}, STOPPED], False, [record("7"), record("8")], queue(RUNNING), "stopped"),
        ([BEGUN, CONVERGED], False, [record("7"), record("8")], queue(("8", "PENDING", "None")), "converged"),
        ([BEGUN, CONVERGED], False, [record("7"), record("8", 130.0)], queue(("8", "PENDING", "None")), "pending"),
        ([], False, [record("7")], queue(("7", "COMPLETED", "None")), "stopped"),
        ([], False, [record("7")], queue(("7", "FAILED", "NonZeroExitCode")), "stopped"),
        ([], False, [record("7")], AWAY, "pending"),
        ([BEGUN], False, [record("7")], AWAY, "stopped"),
    ],
)
def test_the_state_of_a_run(records, lives, jobs, answer, state):
    """Fresh heartbeats and recorded ends outrank the queue; a job that has left it is no success."""
    assert decide(progress(*records), lives, jobs, answer).state == state


def test_a_job_that_never_drove_is_told():
    """A job that ended before its driver began is named, with Slurm's reason and where to look."""
    note = decide(progress(), False, [record("7")], queue(("7", "FAILED", "NonZeroExitCode"))).note
    assert "job 7 ended before its driver began (FAILED (NonZeroExitCode))" in note
    assert "logs --job 7" in note


def test_files_alone_are_said_to_be_files():
    """While Slurm does not answer, its own words say so, and what is shown is said to be from the files."""
    note = decide(progress(), False, [record("7")], AWAY).note
    assert "Unable to contact slurm controller" in note
    assert "from the files" in note


def test_a_job_of_somebody_else_is_not_ours():
    """After a cluster is set up anew its ids begin again: a job is known by its comment."""
    foreign = read_queue(Answer(("squeue",), 0, "7|RUNNING|None|1:00|30:00|2|4|n1|N/A|rose-hpc:other", ""))
    assert foreign.of(record("7")) is None
    assert decide(progress(), False, [record("7")], foreign).state == "stopped"


def test_a_job_without_an_id_is_found_by_its_token():
    """What sbatch submitted without telling its id is seen in the queue."""
    nameless = JobRecord("", "rose-hpc:7", 100.0, "me", os.getuid(), ("sbatch",), 2)
    assert decide(progress(), False, [nameless], queue(PENDING)).state == "pending"
    assert job_facts([nameless], queue(PENDING))[0]["job"] == "7"
    assert "did not say" in decide(progress(), False, [nameless], queue()).note


def test_comments_may_hold_anything():
    """Other jobs' comments and broken lines do not disturb the reading of ours."""
    lines = ["1|RUNNING|None|1:00|2:00|1|1|n1|N/A|a|b|c", "rubbish", "|||||||||"]
    lines.append("7|PENDING|Resources|0:00|1:00|2|4||N/A|rose-hpc:7")
    found = read_queue(Answer(("squeue",), 0, "\n".join(lines), ""))
    assert found.jobs["1"].token == "a|b|c"  # noqa: S105 - a comment, no password
    assert found.of(record("7")) is not None
    assert found.jobs.keys() == {"1", "7"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0:05", 5),
        ("12:34", 754),
        ("1:00:00", 3600),
        ("2-03:00:00", 183600),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_slurms_times(text, value):
    """squeue's ways of writing a duration are read; what is none is None."""
    assert seconds(text) == value


def test_node_hours():
    """A driver's time from first to last record counts for each node of its job, or Slurm's own count if it is more."""
    records = [
        BEGUN,
        {**STOPPED, "time": 3710.0},
        {"kind": "job", "job": "8", "time": 9000.0},
        {**STOPPED, "time": 10800.0},
    ]
    jobs = [record("7", nodes=2), record("8", nodes=1)]
    assert node_hours(Progress.of(records), jobs, queue()) == pytest.approx(2 * 1.0 + 0.5)
    assert node_hours(Progress.of(records), jobs, queue(RUNNING, used="2:00:00")) == pytest.approx(2 * 2.0 + 0.5)
    assert node_hours(Progress(), [], queue()) is None


def test_slurm_is_asked_only_when_files_do_not_say_all():
    """A finished run's jobs are not asked for, so that a thousand finished runs cost no call."""
    assert not is_open(progress(BEGUN, CONVERGED), [record("7")])
    assert is_open(progress(BEGUN, CONVERGED), [record("8", 130.0)])
    assert is_open(progress(BEGUN), [record("7")])
    assert not is_open(progress(BEGUN), [])


def test_a_job_in_one_line():
    """State, reason and nodes; for a running one where, and how long it has."""
    waiting, running = job_facts([record("7")], queue(PENDING))[0], job_facts([record("7")], queue(RUNNING))[0]
    assert describe_job(waiting) == "7: PENDING (Resources), 2 nodes"
    assert describe_job(running) == "7: RUNNING, 2 nodes (n[1-2]), 0:30:00 left"


def test_what_changed_between_two_jobs_costs_nothing() -> None:
    """An ``extend`` record is written as the next driver begins: the day before it is nobody's time."""
    hour, day = 3600.0, 86400.0
    records = [
        {"kind": "job", "job": "1", "time": 0.0},
        {"kind": "end", "time": hour},
        {"kind": "extend", "time": day},
        {"kind": "job", "job": "2", "time": day},
        {"kind": "end", "time": day + hour},
    ]
    assert _driven_s(Progress.of(records)) == {"1": hour, "2": hour}
