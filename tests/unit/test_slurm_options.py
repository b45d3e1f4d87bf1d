"""From [slurm] to sbatch's arguments: every key, and paths that no shell would survive."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rose_hpc.config_models import Slurm
from rose_hpc.errors import UsageError
from rose_hpc.rundir import RunDir
from rose_hpc.slurm.options import Submission, sbatch_argv, walltime

ALL = {
    **{"nodes": 3, "ntasks_per_node": 2, "cpus_per_task": 4, "gpus_per_node": 1, "mem_gb": 1.5, "walltime_min": 90},
    **{"partition": "debug", "account": "a", "qos": "q", "constraint": "x&y", "reservation": "r", "exclusive": True},
    **{"mail_user": "me@x.org", "mail_type": ["END", "FAIL"], "requeue": True, "extra": ["--licenses=l", "--nice=5"]},
}
#: settings that are no options of sbatch: the number of jobs, and what the job script does
NOT_OPTIONS = {"chain", "modules", "venv", "conda", "setup"}


def argv(slurm: Slurm | None = None, run: str = "/r/x", after: str = "") -> tuple[str, ...]:
    return sbatch_argv(slurm or Slurm(), Submission(RunDir(Path(run)), Path("/s.sbatch"), "toy", "rose-hpc:1", after))


def test_every_key_is_an_option():
    """Each key of [slurm] becomes the sbatch option of its name, with its unit converted."""
    words = set(argv(Slurm.model_validate(ALL)))
    expected = "nodes=3 ntasks-per-node=2 cpus-per-task=4 gpus-per-node=1 mem=1536M time=01:30:00 partition=debug"
    expected += " account=a qos=q constraint=x&y reservation=r exclusive mail-user=me@x.org mail-type=END,FAIL requeue"
    assert words >= {f"--{option}" for option in f"{expected} licenses=l nice=5".split()}
    assert Slurm.model_fields.keys() == ALL.keys() | NOT_OPTIONS  # a new key must be thought of here


def test_what_is_not_asked_for_is_not_said():
    """Without settings only the number of nodes and our own options are given: the site's defaults hold."""
    resources = [word for word in argv() if word.startswith(("--mem", "--time", "--part", "--acc", "--gpus", "--cpus"))]
    assert resources == []
    assert {"--nodes=1", "--no-requeue", "--no-kill", "--open-mode=append", "--export=ALL"} <= set(argv())


def test_the_script_and_its_one_argument_come_last():
    """Options stand before the script, the user's own last of them, and the script gets the run directory."""
    words = argv(Slurm.model_validate(ALL))
    assert words[-4:] == ("--licenses=l", "--nice=5", "/s.sbatch", "/r/x")
    assert words[:2] == ("sbatch", "--parsable")


def test_a_chain_waits_for_the_job_before():
    """A job of a chain starts when the one before it has ended, whatever way."""
    assert "--dependency=afterany:17" in argv(after="17")
    assert not any(word.startswith("--dependency") for word in argv())


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (1, "00:01:00"),
        (0.01, "00:00:01"),
        (90, "01:30:00"),
        (1439, "23:59:00"),
        (1440, "1-00:00:00"),
        (4321, "3-00:01:00"),
    ],
)
def test_walltimes(minutes, text):
    """Minutes are written as Slurm reads them, and nothing is rounded to zero, which would mean no limit."""
    assert walltime(minutes) == text


def test_a_short_job_is_not_warned_at_its_start():
    """The warning before the walltime leaves a short job most of its time."""
    assert "--signal=B:USR2@60" in argv()
    assert "--signal=B:USR2@12" in argv(Slurm(walltime_min=2))
    assert "--signal=B:USR2@60" in argv(Slurm(walltime_min=600))


@given(st.text(st.characters(blacklist_characters="\n\\\0", blacklist_categories=("Cs",)), min_size=1))
def test_any_path_is_one_argument(name):
    """Whatever a run directory is called, sbatch gets it unchanged, and as a pattern that means just that path."""
    words = argv(run=f"/r/{name}")
    assert words[-1] == str(Path(f"/r/{name}"))
    (pattern,) = (word.removeprefix("--output=") for word in words if word.startswith("--output="))
    folder, _, file = pattern.rpartition("/")
    assert file == "%j.out"
    assert folder.replace("%%", "") == folder.replace("%", "")  # no lonely % is left
    assert folder.replace("%%", "%") == f"{Path(f'/r/{name}')}/slurm"


def test_a_backslash_is_refused():
    """sbatch cannot write to a path with a backslash, so it is refused before anything is submitted."""
    with pytest.raises(UsageError, match=r"backslash.*--run-dir"):
        argv(run="/r/a\\b")


@pytest.mark.parametrize(
    "option", ["--comment=mine", "--output=/x", "--out=/x", "--array=1-9", "--wrap=ls", "--chdir=/"]
)
def test_options_that_are_ours_are_refused(option):
    """An extra option that would keep a job from being found again is refused, also when it is abbreviated."""
    with pytest.raises(UsageError, match=r"slurm\.extra"):
        argv(Slurm.model_validate({"extra": [option]}))
