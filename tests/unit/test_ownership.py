"""Who owns a run: one driver at a time, and a dead one is followed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def test_one_who_has_only_just_got_the_run_is_named(run):
    """Between getting the lock and saying so the file still names a dead driver: who is refused waits for the name."""
    owner(run, host=socket.gethostname(), pid=2**22 - 1)
    with open(run.owner, "rb") as held:
        ownership.fcntl.flock(held, ownership.fcntl.LOCK_EX)
        says = threading.Timer(0.2, lambda: owner(run, host=socket.gethostname(), pid=os.getpid(), epoch=5))
        says.start()
        with pytest.raises(OwnedError, match=f"driven by process {os.getpid()} on "):
            Ownership(run)
        says.join()


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


@contextmanager
def beating(run: RunDir, **changes: object) -> Iterator[None]:
    """An owner that beats, as a driver elsewhere does."""
    done = threading.Event()

    def beat() -> None:
        beats = 0
        while not done.wait(0.05):
            beats += 1
            owner(run, **{"heartbeat": time.time() + beats, **{k: v + beats for k, v in changes.items()}})

    owner(run, **changes)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("hours", [-1, 0, 1], ids=["slow", "right", "fast"])
def test_a_living_owner_elsewhere_is_respected(run, hours):
    """Where locks do not cross nodes a beating heartbeat holds the run, whatever the clock of its node says."""
    with (
        beating(run, heartbeat=time.time() + 3600 * hours),
        pytest.raises(OwnedError, match="process 123 on node17, job 99; watch it with `rose-hpc status"),
    ):
        Ownership(run)


@pytest.mark.parametrize("hours", [-1, 0, 1], ids=["slow", "right", "fast"])
def test_a_dead_owner_elsewhere_is_followed(run, monkeypatch, hours):
    """A heartbeat that stands still is a dead owner's: its run is taken over, under its epoch + 1."""
    monkeypatch.setattr(ownership, "HEARTBEAT_MAX_AGE_S", 0.3)
    monkeypatch.setattr(ownership, "_WATCH_S", 0.2)
    owner(run, heartbeat=time.time() + 3600 * hours)
    held = Ownership(run)
    assert held.epoch == 5
    assert ownership.read_owner(run)["host"] == socket.gethostname()
    held.release()


def test_an_owner_that_lets_go_while_it_is_watched_is_followed_at_once(run):
    """Who waits for a dead owner does not wait on when it lets go after all."""
    owner(run)
    letting_go = threading.Timer(0.2, lambda: owner(run, pid=None))
    letting_go.start()
    held = Ownership(run)
    letting_go.join()
    assert held.epoch == 5
    held.release()


def without_locks(*_: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_without_locks_heartbeats_decide(run, monkeypatch):
    """A file system without locks: a living process that beats holds the run, a dead one is followed at once."""
    monkeypatch.setattr(ownership.fcntl, "flock", without_locks)
    here = {"host": socket.gethostname()}
    owner(run, **here, pid=2**22 - 1)
    first = Ownership(run)
    assert first.epoch == 5
    beats = threading.Timer(0.2, first.beat)
    beats.start()
    with pytest.raises(OwnedError, match=f"process {os.getpid()} on "):
        Ownership(run)
    beats.join()
    first.release()


def test_the_lock_of_a_dead_machine_holds_nobody_up(run, monkeypatch):
    """A file server may keep a dead machine's lock for minutes: the heartbeat decides then, dead or alive."""
    held = os.open(run.owner, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with beating(run), pytest.raises(OwnedError, match="process 123 on node17"):
        Ownership(run)
    monkeypatch.setattr(ownership, "HEARTBEAT_MAX_AGE_S", 0.3)
    monkeypatch.setattr(ownership, "_WATCH_S", 0.2)
    owner(run)
    heir = Ownership(run)
    assert heir.epoch == 5
    heir.release()
    os.close(held)


def test_without_locks_one_of_two_gets_the_run(run, monkeypatch):
    """Two who see a dead owner at once: an epoch is given to one of them, and the other finds out that it lives."""
    monkeypatch.setattr(ownership.fcntl, "flock", without_locks)
    claimed = run.path / ".owners" / "5"
    claimed.parent.mkdir()
    claimed.touch()  # the other was faster by a moment
    writes = threading.Timer(0.2, lambda: owner(run, epoch=5, host="node18", pid=7))
    beats = threading.Timer(0.6, lambda: owner(run, epoch=5, host="node18", pid=7, heartbeat=1.0))
    owner(run, pid=None)
    writes.start()
    beats.start()
    with pytest.raises(OwnedError, match="process 7 on node18"):
        Ownership(run)
    beats.join()


def test_a_claim_whose_claimant_died_holds_nobody_up(run):
    """Killed between claiming an epoch and writing that it owns the run: the next one takes the epoch after it."""
    (run.path / ".owners").mkdir()
    (run.path / ".owners" / "0").write_text(socket.gethostname())
    held = Ownership(run)
    assert held.epoch == 1
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


def test_what_a_follower_finds_is_not_written_over(run):
    """Before every record and every published file a driver looks whether the run is still its own."""
    sleeper = Ownership(run)
    sleeper.check()
    owner(run, epoch=1)
    with pytest.raises(OwnedError, match="process 123 on node17"):
        sleeper.check()
    sleeper.release()


def test_a_watch_takes_no_clock_but_its_own(run):
    """Whoever watches a driver sees it live while its heartbeats change, and dead once they stand still or end."""
    owner(run, heartbeat=0.0)
    watch = ownership.Watch(run.owner, epoch=4, patience_s=0.2)
    for beat in range(3):
        owner(run, heartbeat=-3600.0 * beat)
        time.sleep(0.1)
        assert watch.lives()
    run.owner.write_text("{half")
    assert watch.lives()
    time.sleep(0.25)
    assert not watch.lives()
    for ended in ({"epoch": 5}, {"pid": None}):
        owner(run, heartbeat=9.0)
        assert ownership.Watch(run.owner, epoch=4).lives()
        owner(run, **ended)
        assert not ownership.Watch(run.owner, epoch=4).lives()


def test_an_epoch_is_never_given_twice_though_the_owners_file_is_lost(run):
    """The journal's drivers count too: a new owner is later than all of them."""
    owner = Ownership(run)
    owner.follow(41)
    assert owner.epoch == 42
    assert ownership.read_owner(run)["epoch"] == 42
    owner.follow(7)
    assert owner.epoch == 42
    owner.release()
