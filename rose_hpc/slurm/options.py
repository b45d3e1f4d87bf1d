"""What sbatch is told: a pure function from ``[slurm]`` to an argument list. No shell, no text templates.

Options on the command line override those in a script, so the job script is static, and ``submit --dry-run`` prints
all there is to know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rose_hpc.errors import UsageError
from rose_hpc.rundir import RunDir

if TYPE_CHECKING:
    from rose_hpc.config_models import Slurm

#: the batch script is warned so long before the walltime; Slurm may do it up to a minute earlier
_WARN_S = 60
#: options that we set and that a job cannot be found, followed or cancelled without
_OURS = ("--array", "--chdir", "--comment", "--output", "--parsable", "--test-only", "--wait", "--wrap")


@dataclass(frozen=True)
class Submission:
    """One job as it will be submitted.

    Attributes:
        run: its run directory.
        script: the job script.
        name: the job's name.
        token: what its comment will be, by which it is found again.
        after: the job that must have ended before it, whatever way; "" for none.
    """

    run: RunDir
    script: Path
    name: str
    token: str
    after: str = ""


def sbatch_argv(slurm: Slurm, submission: Submission) -> tuple[str, ...]:
    """The command line that submits the job.

    Raises:
        UsageError: ``slurm.extra`` takes an option that is ours, or Slurm could not carry the run's path.
    """
    run = submission.run
    ours = (
        "sbatch",
        "--parsable",
        f"--job-name={submission.name}",
        f"--comment={submission.token}",
        f"--chdir={run.path}",
        f"--output={output_pattern(run)}",
        "--open-mode=append",  # a requeued job must not wipe out what it said before
        # ALL and not NONE: with NONE every srun in the job would start its ranks with an empty environment, and sbatch
        # would read the login shell's files for up to minutes. What is Slurm's in it is taken out: see commands.py.
        "--export=ALL",
        "--no-kill",  # a lost node takes its own ranks, not the job
        "--requeue" if slurm.requeue else "--no-requeue",
        f"--signal=B:USR2@{_warn_s(slurm)}",
        *([f"--dependency=afterany:{submission.after}"] if submission.after else []),
    )
    return (*ours, *_resources(slurm), *_charged(slurm), *_checked(slurm.extra), str(submission.script), str(run.path))


def output_pattern(run: RunDir) -> str:
    """``<run>/slurm/<jobid>.out`` as sbatch wants it: a literal % is %%.

    Raises:
        UsageError: for a backslash, which switches sbatch's patterns off and is then lost itself.
    """
    folder = str(run.slurm)
    if "\\" in folder:
        raise UsageError(
            f"the run directory {run.path} has a backslash in its path, which sbatch cannot write to",
            hint="choose another --run-dir",
        )
    return folder.replace("%", "%%") + "/%j.out"


def walltime(minutes: float) -> str:
    """Minutes as Slurm writes them: ``HH:MM:SS``, or ``D-HH:MM:SS`` from a day on; fractions of a second count up."""
    seconds = math.ceil(minutes * 60)
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{text}" if days else text


def _warn_s(slurm: Slurm) -> int:
    if slurm.walltime_min is None:
        return _WARN_S
    return max(1, min(_WARN_S, int(slurm.walltime_min * 60 / 10)))  # a short job is not warned at its start


def _resources(slurm: Slurm) -> list[str]:
    given = {
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.ntasks_per_node,
        "cpus-per-task": slurm.cpus_per_task,
        "gpus-per-node": slurm.gpus_per_node,
        "mem": None if slurm.mem_mb is None else f"{slurm.mem_mb}M",
        "time": None if slurm.walltime_min is None else walltime(slurm.walltime_min),
        "constraint": slurm.constraint,
    }
    return [*_options(given), *(["--exclusive"] if slurm.exclusive else [])]


def _charged(slurm: Slurm) -> list[str]:
    given = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "reservation": slurm.reservation,
        "mail-user": slurm.mail_user,
        "mail-type": ",".join(slurm.mail_type) or None,
    }
    return _options(given)


def _options(given: Mapping[str, int | str | None]) -> list[str]:
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def _checked(extra: tuple[str, ...]) -> tuple[str, ...]:
    for option in extra:
        name = option.partition("=")[0]
        # sbatch takes any unambiguous beginning of an option's name for the option
        if taken := next((ours for ours in _OURS if len(name) > 3 and ours.startswith(name)), None):
            raise UsageError(
                f"slurm.extra has {option!r}, and {taken} is how a run's jobs are found again", hint="remove it"
            )
    return extra
