"""The run directory: its names, what is published into it, and who owns it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rose_hpc import rundir
from rose_hpc.errors import OwnedError, RunError, UsageError
from rose_hpc.rundir import HEARTBEAT_MAX_AGE_S, Ownership, RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create("toy", tmp_path / "run")


def owner(run: RunDir, **changes: object) -> None:
    """Write an owner's file as a driver elsewhere would have."""
    now = time.time()
    facts = {"epoch": 4, "host": "node17", "pid": 123, "job": "99", "since": now, "heartbeat": now, **changes}
    run.owner.write_text(json.dumps(facts))


# -- names -------------------------------------------------------------------------------------------------------------


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


# -- publishing --------------------------------------------------------------------------------------------------------


def grow(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


FILES = {"weights.npz": b"w" * 1000, "layers/0.bin": b"\0\1", "layers/1.bin": b"", "a b'\"$": b"odd name"}


def test_a_published_folder_is_committed(run):
    """A published folder has its name, its content and its facts; its files are read-only, its scratch name is gone."""
    scratch = grow(run.scratch / "x.policy", FILES)
    run.iteration(0).mkdir()
    facts = rundir.publish_tree(scratch, run.policy(0))
    assert (facts["files"], facts["bytes"]) == (4, sum(map(len, FILES.values())))
    assert rundir.tree_facts(run.policy(0)) == facts
    assert not scratch.exists()
    for name, data in FILES.items():
        path = run.policy(0) / name
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o222 == 0


def test_publishing_again_replaces_what_has_no_record(run):
    """What an attempt published before its driver died is replaced as a whole by its repetition."""
    run.iteration(0).mkdir()
    rundir.publish_tree(grow(run.scratch / "1", {"old": b"1", "weights": b"1"}), run.policy(0))
    rundir.publish_tree(grow(run.scratch / "2", {"weights": b"2"}), run.policy(0))
    assert {path.name: path.read_bytes() for path in run.policy(0).iterdir()} == {"weights": b"2"}


def test_a_changed_copy_leaves_the_original(run):
    """The update's copy can be changed in place, truncated and added to; the committed policy stays as it was."""
    run.iteration(0).mkdir()
    script = {"run.sh": b"#!/bin/sh\n"}
    scratch = grow(run.scratch / "1", FILES | script)
    (scratch / "run.sh").chmod(0o755)
    facts = rundir.publish_tree(scratch, run.policy(0))
    rundir.copy_tree(run.policy(0), copy := run.scratch / "2")
    assert rundir.tree_facts(copy) == facts
    assert os.access(copy / "run.sh", os.X_OK)
    for path in copy.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o200
            with open(path, "r+b") as file:
                file.write(b"changed")
    (copy / "layers" / "new").touch()
    assert rundir.tree_facts(run.policy(0)) == facts


def test_a_copy_of_nothing_is_empty(run):
    """The first update finds an empty folder."""
    rundir.copy_tree(None, run.scratch / "first")
    assert list((run.scratch / "first").iterdir()) == []


@settings(deadline=None)
@given(st.permutations(sorted(FILES)), st.integers(0, 2**31))
def test_the_digest_is_of_names_and_contents(tmp_path_factory, order, mtime):
    """Neither the order in which files were made, nor their times, nor where the folder is, change the digest."""
    folder = grow(tmp_path_factory.mktemp("tree"), {name: FILES[name] for name in order})
    for name in order:
        os.utime(folder / name, (mtime, mtime))
    assert rundir.tree_facts(folder)["digest"] == "41e36955e4b0deeefb25e016a6397089"  # fixed: journals hold it
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {**FILES, "layers/0.bin": b"\0\2"},
        {**FILES, "extra": b""},
        {name: data for name, data in FILES.items() if name != "layers/1.bin"},
        {("layers/2.bin" if name == "layers/1.bin" else name): data for name, data in FILES.items()},
        {("1.bin" if name == "layers/1.bin" else name): data for name, data in FILES.items()},
    ],
    ids=["content", "one more", "one less", "renamed", "moved"],
)
def test_any_change_changes_the_digest(tmp_path, changed):
    """Two folders have one digest only when they hold the same files."""
    before = rundir.tree_facts(grow(tmp_path / "a", FILES))
    assert rundir.tree_facts(grow(tmp_path / "b", changed))["digest"] != before["digest"]


def test_names_that_are_not_utf8_can_be_published(run):
    """A file name of any bytes is taken as it is."""
    scratch = grow(run.scratch / "x", {})
    (scratch / os.fsdecode(b"caf\xe9")).write_bytes(b"1")
    assert rundir.tree_facts(scratch, seal=True)["files"] == 1


def test_what_is_no_plain_file_is_refused(run, tmp_path):
    """Links and pipes in a policy are refused by name: what they lead to would not be committed."""
    for make in (lambda p: p.symlink_to("/etc/passwd"), lambda p: p.symlink_to("/tmp"), os.mkfifo):  # noqa: S108 - only a target
        scratch = grow(tmp_path / "scratch", FILES)
        make(scratch / "strange")
        with pytest.raises(RunError, match="strange is neither a file nor a folder; keep only plain files"):
            rundir.publish_tree(scratch, run.policy(0))
        assert not run.policy(0).exists()
        shutil.rmtree(scratch)


def test_a_folder_that_is_no_more_is_refused(run, tmp_path):
    """An update that removed its policy folder, or put a link in its place, is told so; nothing is published."""
    with pytest.raises(RunError, match="is a folder no more"):
        rundir.publish_tree(run.scratch / "gone", run.policy(0))
    (run.scratch / "link").symlink_to(grow(tmp_path / "outside", FILES))
    with pytest.raises(RunError, match="is a folder no more"):
        rundir.publish_tree(run.scratch / "link", run.policy(0))
    assert os.access(tmp_path / "outside" / "weights.npz", os.W_OK)


def test_a_file_is_replaced_as_a_whole(run):
    """A small file of ours has its old content or its new one, and no scratch name stays."""
    rundir.write_file(run.config, b"a = 1\n")
    rundir.write_file(run.config, b"b\n")
    assert run.config.read_bytes() == b"b\n"
    assert {path.name for path in run.path.iterdir()} == {"config.toml", "journal.jsonl", "logs", "scratch", "slurm"}


def test_remove_takes_files_folders_links_and_nothing(tmp_path):
    """Removing what is there, in whatever form, or not there; never what a link leads to."""
    kept = grow(tmp_path / "kept", FILES)
    (tmp_path / "link").symlink_to(kept)
    grow(tmp_path / "folder", FILES)
    (tmp_path / "file").touch()
    for name in ("link", "folder", "file", "nothing"):
        rundir.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert len(list(kept.iterdir())) == 3


# -- owning ------------------------------------------------------------------------------------------------------------


def test_a_second_owner_is_refused(run):
    """While a driver holds the run, another is refused, and told the host and process that hold it."""
    first = Ownership(run)
    with pytest.raises(OwnedError, match=f"driven by process {os.getpid()} on {socket.gethostname()}"):
        Ownership(run)
    assert rundir.owner_lives(run)
    first.release()


def test_a_release_lets_the_next_in_at_once(run):
    """After a release the run is free without waiting, under the next epoch; releasing twice is no error."""
    epochs = []
    for _ in range(3):
        ownership = Ownership(run)
        epochs.append(ownership.epoch)
        ownership.release()
        ownership.release()
        assert not rundir.owner_lives(run)
    assert epochs == [0, 1, 2]


def test_a_killed_owner_is_followed_at_once(run):
    """A driver killed outright does not hold the run: on its own host the next takes over under a new epoch."""
    code = (
        "import sys, time, pathlib; from rose_hpc.rundir import *; o = Ownership(RunDir(pathlib.Path(sys.argv[1]))); "
    )
    code += "print(o.epoch, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, run.path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        assert rundir.owner_lives(run)
        with pytest.raises(OwnedError, match=f"process {process.pid} on "):
            Ownership(run)
        process.send_signal(signal.SIGKILL)
    assert not rundir.owner_lives(run)
    ownership = Ownership(run)
    assert ownership.epoch == 1
    ownership.release()


def test_a_living_owner_elsewhere_is_respected(run):
    """On file systems whose locks do not cross nodes, a fresh heartbeat from another host holds the run."""
    owner(run)
    assert rundir.owner_lives(run)
    with pytest.raises(OwnedError, match="process 123 on node17, job 99; watch it with `rose-hpc status"):
        Ownership(run)


def test_a_dead_owner_elsewhere_is_followed(run):
    """A heartbeat older than a minute is a dead owner's: its run is taken over, under its epoch + 1."""
    owner(run, heartbeat=time.time() - HEARTBEAT_MAX_AGE_S - 1)
    assert not rundir.owner_lives(run)
    ownership = Ownership(run)
    assert ownership.epoch == 5
    assert rundir.read_owner(run)["host"] == socket.gethostname()
    ownership.release()


def test_an_owner_elsewhere_that_let_go_is_followed_at_once(run):
    """A released run is free on every host, however fresh its last heartbeat."""
    owner(run, pid=None)
    ownership = Ownership(run)
    assert ownership.epoch == 5
    ownership.release()


def test_no_epoch_is_given_twice(run, monkeypatch):
    """An owner that comes and goes while another waits for the lock is counted: attempt ids rest on it."""
    lock = rundir.fcntl.flock

    def late(*arguments: int) -> None:
        owner(run, epoch=8, pid=None)
        lock(*arguments)

    monkeypatch.setattr(rundir.fcntl, "flock", late)
    ownership = Ownership(run)
    assert ownership.epoch == 9
    ownership.release()


def test_a_heartbeat_keeps_the_owner_alive(run, monkeypatch):
    """A driver lives while its heartbeats come, and is dead a minute after the last, though its process is there."""
    ownership = Ownership(run)
    now = time.time()
    monkeypatch.setattr(rundir.time, "time", lambda: now + HEARTBEAT_MAX_AGE_S + 30)
    assert not rundir.owner_lives(run)
    ownership.beat()
    assert rundir.owner_lives(run)
    monkeypatch.undo()
    ownership.release()


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_an_unreadable_owner_is_no_owner(run, text):
    """An owner's file that cannot be read does not lock anybody out: the lock itself decides."""
    run.owner.write_bytes(text)
    assert rundir.read_owner(run) is None
    assert not rundir.owner_lives(run)
    Ownership(run).release()


def test_the_owners_file_never_shrinks_or_grows(run):
    """Every heartbeat is one write of the same length, so that no reader sees half of two."""
    ownership = Ownership(run)
    sizes = {run.owner.stat().st_size}
    ownership.beat()
    ownership.release()
    assert sizes == {run.owner.stat().st_size} == {512}


def test_an_owner_that_was_taken_over_says_so_and_writes_nothing(run):
    """A driver that slept while another took its run finds out at its next heartbeat, and leaves the file alone."""
    sleeper = Ownership(run)
    facts = rundir.read_owner(run) | {"epoch": sleeper.epoch + 1, "host": "elsewhere", "pid": 77}
    run.owner.write_text(json.dumps(facts))
    with pytest.raises(OwnedError, match="process 77 on elsewhere"):
        sleeper.beat()
    sleeper.release()
    assert rundir.read_owner(run) == facts


def test_an_epoch_is_never_given_twice_though_the_owners_file_is_lost(run):
    """The journal's drivers count too: a new owner is later than all of them."""
    owner = Ownership(run)
    owner.follow(41)
    assert owner.epoch == 42
    assert rundir.read_owner(run)["epoch"] == 42
    owner.follow(7)
    assert owner.epoch == 42
    owner.release()


def test_a_committed_file_is_nobody_elses(run):
    """A hard link to a file outside is broken up when the folder is published."""
    outside = run.path / "outside"
    outside.write_text("before")
    scratch = run.scratch / "policy"
    scratch.mkdir()
    (scratch / "weights").hardlink_to(outside)
    run.iteration(0).mkdir()
    rundir.publish_tree(scratch, run.policy(0))
    outside.write_text("after")
    assert (run.policy(0) / "weights").read_text() == "before"
