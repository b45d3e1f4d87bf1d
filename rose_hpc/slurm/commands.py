"""Slurm's commands, called as they must be: without the user's settings for them, and never for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rose_hpc.errors import RoseHpcError, UsageError

#: settings of Slurm's commands in the environment, which would change what they do or print
_SETTINGS = ("SLURM", "SBATCH", "SQUEUE", "SACCT", "SCANCEL", "SCONTROL", "SINFO", "SRUN", "SALLOC", "PMI_", "PMIX_")
#: of these, what says which Slurm it is, and that we may talk to it
_KEPT = frozenset({"SLURM_CONF", "SLURM_JWT"})
#: what a task or driver has found in its environment is not for the jobs it submits
_TASK = ("ROSE_HPC_RUN", "ROSE_HPC_STAGE", "ROSE_HPC_ITERATION", "ROSE_HPC_ENVIRONMENT", "ROSE_HPC_DEADLINE")

#: seconds until a question counts as not answered; Slurm's own patience with its controller is 10 s a try
ASK_TIMEOUT_S = 30.0
#: the same for sbatch, which tries again by itself
SUBMIT_TIMEOUT_S = 120.0

#: what Slurm says when its controller cannot be reached, or did not answer in time
_AWAY = ("unable to contact slurm controller", "socket timed out", "connection refused", "connect failure")
_AWAY_TOO = (
    "zero bytes were transmitted",
    "unable to establish controller",
    "unexpected message received",
    "timed out",
)


class SlurmError(RoseHpcError):
    """Slurm refused, with its own words and ours."""


class SlurmAwayError(SlurmError):
    """Slurm did not answer; whether it did what was asked is not known."""


@dataclass(frozen=True)
class Answer:
    """What a command said. ``returncode`` is None when it took too long and was ended."""

    argv: tuple[str, ...]
    returncode: int | None
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.returncode == 0

    @property
    def away(self) -> bool:
        """Whether it failed because the controller did not answer."""
        text = self.stderr.lower()
        return self.returncode is None or (not self.ok and any(sign in text for sign in (*_AWAY, *_AWAY_TOO)))

    @property
    def words(self) -> str:
        """Slurm's own words, in one line."""
        if self.returncode is None:
            return f"{self.argv[0]} gave no answer in time"
        lines = (line.removeprefix(f"{self.argv[0]}: ") for line in (self.stderr or self.stdout).splitlines())
        return "; ".join(line.removeprefix("error: ") for line in lines if line.strip()) or "no word of explanation"


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without the settings of Slurm's commands, those of a surrounding job, and those of a task of ours."""
    return {
        name: value
        for name, value in environ.items()
        if (not name.startswith(_SETTINGS) or name in _KEPT) and name not in _TASK
    }


def available(program: str = "sbatch") -> bool:
    """Whether there is such a command."""
    return shutil.which(program) is not None


def call(argv: Sequence[str], timeout_s: float = ASK_TIMEOUT_S) -> Answer:
    """Run one of Slurm's commands, for at most ``timeout_s``.

    Raises:
        UsageError: there is no such command.
    """
    if not available(argv[0]):
        raise UsageError(f"there is no {argv[0]} on this machine", hint="is this a login node of the cluster?")
    try:
        done = subprocess.run(
            list(argv),
            env=clean_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(tuple(argv), None, "", "")
    return Answer(tuple(argv), done.returncode, done.stdout, done.stderr)
