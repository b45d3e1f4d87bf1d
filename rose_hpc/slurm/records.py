"""What the login node notes of the jobs it submits: ``slurm/<jobid>.json``, read by every command.

Before sbatch is called, what will be submitted stands in ``slurm/submitting-<token>.json``. When sbatch does not
answer, or its caller is killed, that file remains, and its token, which is also the job's comment, finds the job again.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rose_hpc import failpoints, publishing
from rose_hpc.rundir import RunDir

if TYPE_CHECKING:
    from rose_hpc.config_models import Slurm

_SUBMITTING = "submitting-"
_JOB_ID = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class JobRecord:
    """A job that was submitted; ``job`` is "" while sbatch has not said its id.

    Attributes:
        job: Slurm's id of it.
        token: its comment.
        time: when it was submitted, Unix seconds.
        user, uid: who submitted it.
        argv: sbatch's command line.
        nodes, partition, walltime_min: of what was asked for.
        after: the job it waits for; "" for none.
    """

    job: str
    token: str
    time: float
    user: str
    uid: int
    argv: tuple[str, ...]
    nodes: int
    partition: str | None = None
    walltime_min: float | None = None
    after: str = ""

    @property
    def ours(self) -> bool:
        """Whether we submitted it, who are asking now."""
        return self.uid == os.getuid()


def new_token() -> str:
    """A comment that no other job has."""
    return f"rose-hpc:{uuid.uuid4().hex}"


def new_record(token: str, argv: Sequence[str], slurm: Slurm, after: str = "") -> JobRecord:
    """The record of a job that is about to be submitted by us."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # in a container without its user
        user = str(uid)
    moment = round(time.time(), 3)
    limits = (slurm.nodes, slurm.partition, slurm.walltime_min)
    return JobRecord("", token, moment, user, uid, tuple(argv), *limits, after)


def note_submitting(run: RunDir, record: JobRecord) -> None:
    """Write down what will be submitted, before it is."""
    run.slurm.mkdir(exist_ok=True)
    _write(_submitting_path(run, record), record)


def note_submitted(run: RunDir, record: JobRecord, job: str) -> JobRecord:
    """Write down that it was submitted, under the id Slurm gave it."""
    record = replace(record, job=job)
    _write(run.slurm / f"{job}.json", record)
    failpoints.hit("submit-recorded")
    forget_submitting(run, record)
    return record


def forget_submitting(run: RunDir, record: JobRecord) -> None:
    """Nothing was submitted."""
    publishing.remove(_submitting_path(run, record))


def read_records(run: RunDir) -> list[JobRecord]:
    """Every job of the run, in the order they were submitted; those without an id last."""
    found = [record for path in _paths(run) if (record := _read(path)) is not None]
    known = {record.token for record in found if record.job}
    return sorted(
        (record for record in found if record.job or record.token not in known),
        key=lambda record: (not record.job, record.time, record.job),
    )


def note_changes(run: RunDir, changes: Sequence[str]) -> None:
    """Keep what was changed of the run's configuration for the job that goes on with it: its driver records it."""
    publishing.write_file(run.slurm / "changes.json", json.dumps([*_changes(run), *changes]).encode())


def take_changes(run: RunDir) -> list[str]:
    """What was changed since the run was last driven; asked for once."""
    changes = _changes(run)
    failpoints.hit("changes-read")
    publishing.remove(run.slurm / "changes.json")
    failpoints.hit("changes-taken")
    return changes


def _changes(run: RunDir) -> list[str]:
    try:
        return [str(change) for change in json.loads((run.slurm / "changes.json").read_bytes())]
    except (OSError, ValueError):
        return []


def _paths(run: RunDir) -> list[Path]:
    try:
        names = os.listdir(run.slurm)  # noqa: PTH208 - a thousand runs are listed by one `status`
    except OSError:
        return []
    return [run.slurm / name for name in names if name.endswith(".json") and _is_record(name)]


def _is_record(name: str) -> bool:
    return name.startswith(_SUBMITTING) or _JOB_ID.fullmatch(name.removesuffix(".json")) is not None


def _submitting_path(run: RunDir, record: JobRecord) -> Path:
    return run.slurm / f"{_SUBMITTING}{record.token.rpartition(':')[2]}.json"


def _write(path: Path, record: JobRecord) -> None:
    publishing.write_file(path, (json.dumps(asdict(record), indent=1) + "\n").encode())


def _read(path: Path) -> JobRecord | None:
    """The record in a file; None when it is gone, or is not one of ours."""
    try:
        facts = json.loads(path.read_bytes())
        known = {name: facts[name] for name in JobRecord.__dataclass_fields__ if name in facts}
        return JobRecord(**{**known, "argv": tuple(facts["argv"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
