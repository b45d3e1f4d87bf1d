"""Calling Slurm's commands: nothing of the user's settings gets in, and every answer is one of three."""

from __future__ import annotations

from pathlib import Path

import pytest

from rose_hpc.errors import UsageError
from rose_hpc.slurm.commands import Answer, call, clean_environment


def answer(returncode: int | None, stderr: str = "") -> Answer:
    return Answer(("sbatch", "x"), returncode, "", stderr)


def test_settings_of_slurm_are_left_out():
    """Variables that change what Slurm's commands do or print are not passed on; which cluster it is, is."""
    hostile = {"SBATCH_PARTITION": "x", "SQUEUE_FORMAT": "%z", "SLURM_TIME_FORMAT": "relative", "SACCT_FORMAT": "user"}
    hostile |= {"SCANCEL_INTERACTIVE": "1", "SINFO_FORMAT": "x", "SLURM_JOB_ID": "7", "SLURM_CLUSTERS": "other"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "token", "PATH": "/bin", "ROSE_HPC_ENGINE": "embedded"}
    assert clean_environment({**hostile, **kept}) == kept


def test_a_surrounding_run_is_left_out():
    """A job submitted from inside a task is no part of that task's run."""
    assert clean_environment({"ROSE_HPC_RUN": "/r", "ROSE_HPC_STAGE": "update", "HOME": "/h"}) == {"HOME": "/h"}


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
    ],
)
def test_a_controller_that_does_not_answer(words):
    """What Slurm says when its controller is away is told from a refusal; so is a command that hangs."""
    assert answer(1, words).away
    assert answer(None).away
    assert not answer(0, words).away


def test_a_refusal_in_slurms_own_words():
    """A refusal is not an absence, and its words are one line without the command's name in it."""
    refused = answer(1, "sbatch: error: invalid partition: x\nsbatch: error: Batch job submission failed: Invalid\n")
    assert not refused.away
    assert refused.words == "invalid partition: x; Batch job submission failed: Invalid"


def test_a_command_that_hangs_is_ended(tmp_path: Path, monkeypatch):
    """No call lasts longer than its time-out."""
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 99\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert call(["squeue"], timeout_s=0.2).returncode is None


def test_no_slurm_is_a_usage_error(tmp_path: Path, monkeypatch):
    """Without the command the error says which one is missing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no scancel on this machine"):
        call(["scancel", "1"])
