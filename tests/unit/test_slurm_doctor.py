"""The doctor's judgements, each on what a machine said."""

from __future__ import annotations

from pathlib import Path

import pytest

from rose_hpc.slurm.commands import Answer
from rose_hpc.slurm.doctor import (
    check_accounting,
    check_libraries,
    check_nodes,
    check_partitions,
    check_settings,
    check_version,
    file_system_of,
)

NODE = {
    **{"host": "n1", "python": "3.11.7", "interpreter": "/v/bin/python", "rose-hpc": "0.1.0", "h5py": "3.16.0"},
    **{"radical.pilot": "1.103", "hdf5": "2.0.0", "shared": True, "lock": "refused", "gpus": None, "scratch": "/local"},
}


def said(stdout: str = "", returncode: int = 0, stderr: str = "") -> Answer:
    return Answer(("sinfo",), returncode, stdout, stderr)


@pytest.mark.parametrize(
    ("text", "level"),
    [("slurm 22.05.8", "ok"), ("slurm 25.11.0", "ok"), ("slurm 20.02.7", "warning"), ("slurm-wlm 26.05.1", "warning")],
)
def test_versions(text, level):
    """Versions from 20.11 to 25.11 are known good; others are a warning that says which ones are."""
    check = check_version(said(text))
    assert check.level == level
    assert level == "ok" or "20.11 to 25.11" in check.advice


def test_partitions_with_their_limits():
    """Each partition is a line with its limit and nodes; one that is down is a warning, none a fault."""
    rows = (
        "main*|up|1:00:00|4|64|256000|(null)\nmain*|up|1:00:00|2|32|512000|gpu:a100:4\nold|down|infinite|1|8|1|(null)"
    )
    main, old = check_partitions(said(rows))
    assert (main.level, old.level) == ("ok", "warning")
    for words in ("main (the default)", "at most 1:00:00", "4 nodes of 64 cores", "gpu:a100:4"):
        assert words in main.found
    assert [check.level for check in check_partitions(said("", 1, "away"))] == ["fault"]


def test_accounting_is_not_needed():
    """With and without sacct all is well, and the reason is told."""
    assert check_accounting(said()).found == "sacct answers"
    assert "no sacct" in check_accounting(None).found
    assert check_accounting(said("", 1, "Slurm accounting storage is disabled")).level == "ok"


def test_requeue_and_signals():
    """A site without requeue, or with too little time between TERM and KILL, gets a warning that says what to do."""
    good = {check.name: check.level for check in check_settings(said("JobRequeue = 1\nKillWait = 30 sec\n"))}
    bad = {check.name: check for check in check_settings(said("JobRequeue = 0\nKillWait = 2 sec\n"))}
    assert good == {"requeue": "ok", "signals": "ok"}
    assert {check.level for check in bad.values()} == {"warning"}
    assert "chain" in bad["requeue"].advice


def test_libraries():
    """An h5py that cannot be imported is a fault with its error; whether it has MPI is told."""
    facts = {"h5py": "3.16.0", "hdf5": "2.0.0", "h5py_mpi": False, "h5py_error": "", "radical.pilot": "1.103"}
    assert [check.level for check in check_libraries(facts)] == ["ok", "ok"]
    broken = check_libraries({**facts, "hdf5": None, "h5py_error": "wrong glibc", "radical.pilot": None})
    assert [check.level for check in broken] == ["fault", "fault"]


def test_alike_nodes_are_well():
    """Nodes with the same software that see the same files have no fault."""
    checks = list(check_nodes([NODE, {**NODE, "host": "n2", "gpus": "0,1"}]))
    assert {check.level for check in checks} == {"ok"}
    assert any("0,1" in check.found for check in checks)


@pytest.mark.parametrize(
    ("difference", "name", "level"),
    [
        ({"python": "3.12.0"}, "python", "fault"),
        ({"h5py": None}, "h5py", "fault"),
        ({"shared": False}, "shared runs", "fault"),
        ({"lock": "taken"}, "locks across nodes", "warning"),
    ],
)
def test_nodes_that_differ(difference, name, level):
    """A node with other software, or blind to the runs, is a fault that names it; locks it does not see, a warning."""
    checks = {check.name: check for check in check_nodes([NODE, {**NODE, "host": "n2", **difference}])}
    assert checks[name].level == level
    assert "n2" in checks[name].found
    assert checks[name].advice


def test_the_file_system_of_a_path():
    """The longest mount point above a path says what it lies on, also where mount points have spaces."""
    mounts = "r / ext4 rw 0 0\ns /scratch lustre rw 0 0\nt /scratch/my\\040own nfs4 rw 0 0\n"
    assert file_system_of(Path("/home/me"), mounts) == "ext4"
    assert file_system_of(Path("/scratch/me"), mounts) == "lustre"
    assert file_system_of(Path("/scratchy"), mounts) == "ext4"
    assert file_system_of(Path("/scratch/my own/runs"), mounts) == "nfs4"
