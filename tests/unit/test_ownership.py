"""Who owns a run: one driver at a time, and a dead one is followed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rose_hpc import ownership, rundir
from rose_hpc.errors import OwnedError
from rose_hpc.ownership import HEARTBEAT_MAX_AGE_S, Ownership
from rose_hpc.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create("toy", tmp_path / "run")


def owner(run: RunDir, **changes: object) -> None:
    """Write an owner's file as a driver elsewhere would have."""
    now = time.time()
    facts = {"epoch": 4, "host": "node17", "pid": 123, "job": "99", "since": now, "heartbeat": now, **changes}
    run.owner.write_text(json.dumps(facts))


def test_a_second_owner_is_refused(run):
    """While a driver holds the run, another is refused, and told the host and process that hold it."""
    first = Ownership(run)
    with pytest.raises(OwnedError, match=f"driven by process {os.getpid()} on {socket.gethostname()}"):
        Ownership(run)
    assert ownership.owner_lives(run)
    first.release()


def test_a_release_lets_the_next_in_at_once(run):
    """After a release the run is free without waiting, under the next epoch; releasing twice is no error."""
    epochs = []
    for _ in range(3):
        held = Ownership(run)
        epochs.append(held.epoch)
        held.release()
        held.release()
        assert not ownership.owner_lives(run)
    assert epochs == [0, 1, 2]


def test_a_killed_owner_is_followed_at_once(run):
    """A driver killed outright does not hold the run: on its own host the next takes over under a new epoch."""
    code = "import sys, time, pathlib; from rose_hpc.ownership import *; "
    code += "o = Ownership(RunDir(pathlib.Path(sys.argv[1]))); print(o.epoch, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, run.path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        assert ownership.owner_lives(run)
        with pytest.raises(OwnedError, match=f"process {process.pid} on "):
            Ownership(run)
        process.send_signal(signal.SIGKILL)
    assert not ownership.owner_lives(run)
    held = Ownership(run)
    assert held.epoch == 1
    held.release()


def test_a_living_owner_elsewhere_is_respected(run):
    """On file systems whose locks do not cross nodes, a fresh heartbeat from another host holds the run."""
    owner(run)
    assert ownership.owner_lives(run)
    with pytest.raises(OwnedError, match="process 123 on node17, job 99; watch it with `rose-hpc status"):
        Ownership(run)


def test_a_dead_owner_elsewhere_is_followed(run):
    """A heartbeat older than a minute is a dead owner's: its run is taken over, under its epoch + 1."""
    owner(run, heartbeat=time.time() - HEARTBEAT_MAX_AGE_S - 1)
    assert not ownership.owner_lives(run)
    held = Ownership(run)
    assert held.epoch == 5
    assert ownership.read_owner(run)["host"] == socket.gethostname()
    held.release()


def test_an_owner_elsewhere_that_let_go_is_followed_at_once(run):
    """A released run is free on every host, however fresh its last heartbeat."""
    owner(run, pid=None)
    held = Ownership(run)
    assert held.epoch == 5
    held.release()


def test_no_epoch_is_given_twice(run, monkeypatch):
    """An owner that comes and goes while another waits for the lock is counted: attempt ids rest on it."""
    lock = ownership.fcntl.flock

    def late(*arguments: int) -> None:
        owner(run, epoch=8, pid=None)
        lock(*arguments)

    monkeypatch.setattr(ownership.fcntl, "flock", late)
    held = Ownership(run)
    assert held.epoch == 9
    held.release()


def test_a_heartbeat_keeps_the_owner_alive(run, monkeypatch):
    """A driver lives while its heartbeats come, and is dead a minute after the last, though its process is there."""
    held = Ownership(run)
    now = time.time()
    monkeypatch.setattr(ownership.time, "time", lambda: now + HEARTBEAT_MAX_AGE_S + 30)
    assert not ownership.owner_lives(run)
    held.beat()
    assert ownership.owner_lives(run)
    monkeypatch.undo()
    held.release()


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_an_unreadable_owner_is_no_owner(run, text):
    """An owner's file that cannot be read does not lock anybody out: the lock itself decides."""
    run.owner.write_bytes(text)
    assert ownership.read_owner(run) is None
    assert not ownership.owner_lives(run)
    Ownership(run).release()


def test_the_owners_file_never_shrinks_or_grows(run):
    """Every heartbeat is one write of the same length, so that no reader sees half of two."""
    held = Ownership(run)
    sizes = {run.owner.stat().st_size}
    held.beat()
    held.release()
    assert sizes == {run.owner.stat().st_size} == {512}


def test_an_owner_that_was_taken_over_says_so_and_writes_nothing(run):
    """A driver that slept while another took its run finds out at its next heartbeat, and leaves the file alone."""
    sleeper = Ownership(run)
    facts = ownership.read_owner(run) | {"epoch": sleeper.epoch + 1, "host": "elsewhere", "pid": 77}
    run.owner.write_text(json.dumps(facts))
    with pytest.raises(OwnedError, match="process 77 on elsewhere"):
        sleeper.beat()
    sleeper.release()
    assert ownership.read_owner(run) == facts


def test_an_epoch_is_never_given_twice_though_the_owners_file_is_lost(run):
    """The journal's drivers count too: a new owner is later than all of them."""
    owner = Ownership(run)
    owner.follow(41)
    assert owner.epoch == 42
    assert ownership.read_owner(run)["epoch"] == 42
    owner.follow(7)
    assert owner.epoch == 42
    owner.release()
