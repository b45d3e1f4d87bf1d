"""Processes that leave their group end with their attempt, and with their supervisor; nobody else's do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.frames import Unpacker, pack


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, timeout_s=10.0):
    """Return when ``condition`` holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


@pytest.fixture
def supervisor() -> Iterator[socket.socket]:
    """A real supervisor, and the driver's end of its socket."""
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-m", "rose_hpc.execution.rank"]
    with theirs, subprocess.Popen(argv, stdin=theirs, start_new_session=True) as process:
        theirs.close()
        yield ours
        ours.close()
        process.wait(10)


def start(supervisor: socket.socket, identifier: str, script: str) -> None:
    attempt = Attempt(id=identifier, kind="command", argv=("sh", "-c", script))
    supervisor.sendall(pack({"op": "run", "attempt": attempt.to_json()}))


def until_done(supervisor: socket.socket, identifier: str) -> None:
    supervisor.settimeout(20)
    unpacker = Unpacker()
    while True:
        data = supervisor.recv(1)  # no more than this frame
        assert data
        for message, _ in unpacker.feed(data):
            if message["op"] == "done" and message["outcome"]["id"] == identifier:
                return


def daemon(folder: Path, name: str) -> str:
    """A shell line that leaves a process in a session of its own behind, and says its id."""
    return f"setsid sh -c 'echo $$ > {folder}/{name}.new; mv {folder}/{name}.new {folder}/{name}; exec sleep 300' &"


def test_a_daemon_ends_with_its_attempt_and_leaves_the_others(supervisor: socket.socket, tmp_path: Path) -> None:
    """What an attempt left in a session of its own is gone when its end is told; another attempt's goes on."""
    start(supervisor, "other", f"{daemon(tmp_path, 'theirs')} sleep 300")
    wait_until((tmp_path / "theirs").exists)
    start(supervisor, "one", f"{daemon(tmp_path, 'own')} until test -e {tmp_path}/own; do sleep 0.01; done")
    until_done(supervisor, "one")
    own, theirs = (int((tmp_path / name).read_text()) for name in ("own", "theirs"))
    wait_until(lambda: not lives(own))
    assert lives(theirs)


def test_daemons_end_with_the_driver(supervisor: socket.socket, tmp_path: Path) -> None:
    """When the driver's socket ends, so does a process in a session of its own, deep below a running attempt."""
    start(supervisor, "one", f'sh -c "{daemon(tmp_path, "deep")} sleep 300"; sleep 300')
    wait_until((tmp_path / "deep").exists)
    pid = int((tmp_path / "deep").read_text())
    supervisor.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not lives(pid))
    assert os.getpid() != pid
