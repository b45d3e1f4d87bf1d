"""A job that goes on without its first node is ended, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from rose_hpc.slurm import headless


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that answer with files, and note what they were asked."""
    for command in ("scontrol", "scancel"):
        script = tmp_path / command
        script.write_text(
            f'#!/bin/sh\necho "{command} $*" >> {tmp_path}/asked\n'
            f'if [ "$2" = hostnames ]; then cat {tmp_path}/hostnames; else cat {tmp_path}/{command}.said; fi\n'
        )
        script.chmod(0o755)
        (tmp_path / f"{command}.said").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(headless, "_FIRST_S", 0.0)
    monkeypatch.setattr(headless, "_LOOK_S", 0.01)
    monkeypatch.setattr(headless, "_PATIENCE_S", 0.1)
    return tmp_path


def says(slurm: Path, state: str, host: str, nodes: str, names: str) -> None:
    (slurm / "scontrol.said").write_text(f"JobId=7 JobState={state} BatchHost={host} NodeList={nodes}\n")
    (slurm / "hostnames").write_text(names)


@pytest.mark.parametrize(
    ("state", "names", "answer"),
    [
        ("RUNNING", "n2\nn3\n", True),
        ("RUNNING", "n1\nn2\n", False),
        ("COMPLETING", "n2\n", None),
        ("RUNNING", "", False),
    ],
)
def test_a_job_without_its_first_node(slurm, state, names, answer):
    """It runs, and the node of its script is not among its nodes any more."""
    says(slurm, state, "n1", "n[1-3]", names)
    assert headless.is_headless("7") is answer


def test_nobody_knows_the_job(slurm):
    """Where Slurm does not answer, nothing is done."""
    assert headless.is_headless("7") is None
    assert headless.main("7") == 0
    assert "scancel" not in (slurm / "asked").read_text()


def test_it_is_ended_once_slurm_has_seen_the_loss(slurm):
    """The job is cancelled when it is headless; one that keeps its node is left alone for as long as one looks."""
    says(slurm, "RUNNING", "n1", "n[1-2]", "n1\nn2\n")
    assert headless.main("7") == 0
    assert "scancel" not in (slurm / "asked").read_text()
    says(slurm, "RUNNING", "n1", "n2", "n2\n")
    assert headless.main("7") == 0
    assert (slurm / "asked").read_text().splitlines()[-1] == "scancel 7"
