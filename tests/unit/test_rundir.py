"""The run directory: its names, how one is made, and how they are found."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rose_hpc import rundir
from rose_hpc.errors import RunError, UsageError
from rose_hpc.rundir import RunDir
from rose_hpc.session import clear_scratch


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create("toy", tmp_path / "run")


def test_names_are_the_contracts():
    """Users' scripts find the files of a run where the contract says."""
    run = RunDir(Path("/runs/toy-1"))
    names = (run.config, run.journal, run.shard(0, "env_1"), run.bank(0), run.policy(12345), run.slurm)
    assert [run.relative(path) for path in names] == [
        *("config.toml", "journal.jsonl", "iter-0000/shards/env_1.h5", "iter-0000/bank.h5", "iter-12345/policy"),
        "slurm",
    ]
    assert run.log(3, "collect", "env_1").name == "iter-0003-collect-env_1.log"
    assert run.log(3, "merge").name == "iter-0003-merge.log"


def test_the_next_step_can_be_typed():
    """What an error says to type is one word after the command, whatever characters the path has."""
    run = RunDir(Path("/a b/it's $HOME; echo"))
    assert shlex.split(run.command("resume")) == ["rose-hpc", "resume", str(run.path)]


def test_a_new_run_has_its_folders_and_an_empty_journal(folder):
    """A run is made in ./runs under its name and four hex digits, whatever the path, and twice gives two."""
    first, second = rundir.create("toy"), rundir.create("toy")
    assert first.path != second.path
    assert first.path.parent == folder / "runs"
    assert len(first.name) == len("toy-7f3a")
    assert first.journal.read_bytes() == b""
    assert all(path.is_dir() for path in (first.logs, first.slurm, first.scratch))
    assert rundir.find_all() == sorted([first, second], key=lambda run: run.name)


def test_runs_are_made_where_the_variable_says(tmp_path, monkeypatch):
    """$ROSE_HPC_RUNS is where runs are made, found by name, and listed."""
    monkeypatch.setenv("ROSE_HPC_RUNS", str(tmp_path / "elsewhere"))
    assert rundir.find_all() == []
    run = rundir.create("toy")
    assert rundir.find_all() == [run]
    assert rundir.find(Path(run.name)) == rundir.find(run.path) == run


def test_a_run_directory_in_use_is_refused(run, tmp_path):
    """A folder with something in it is not made a run; where that is a run, the error says how to go on with it."""
    with pytest.raises(UsageError, match=re.escape(f"is not empty; {run.command('resume')}")):
        rundir.create("toy", run.path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="choose another --run-dir"):
        rundir.create("toy", tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path):
    """Where a file is in the way, one line names it."""
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot make the run directory .*file"):
        rundir.create("toy", tmp_path / "file" / "run")


def test_a_newline_in_the_path_is_refused(tmp_path):
    """No line of ours or Slurm's could carry such a path, so it is refused before anything is made."""
    with pytest.raises(UsageError, match="newline"):
        rundir.create("toy", tmp_path / "a\nb")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_not_found(tmp_path):
    """A folder without a journal is no run, and the error names the next step."""
    with pytest.raises(RunError, match="`rose-hpc status` lists"):
        rundir.find(tmp_path)


def test_what_a_killed_command_had_begun_to_write_is_removed(run):
    """A configuration that was never renamed into its place goes with the next driver."""
    left = run.path / ".config.toml.77.tmp"
    left.write_text("half")
    (run.scratch / "left").touch()
    clear_scratch(run)
    assert not left.exists()
    assert list(run.scratch.iterdir()) == []
