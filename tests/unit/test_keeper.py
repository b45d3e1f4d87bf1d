"""A supervisor that is killed outright takes all it has started with it, however far that has gone away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rose_hpc.execution import keeper
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.frames import pack

ARGV = [sys.executable, "-m", "rose_hpc.execution.rank"]


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return when ``condition`` holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def keepers(process: subprocess.Popen[bytes]) -> list[int]:
    """The keeper of a supervisor: another process with its command line and environment, in a session of its own."""
    own = [Path(f"/proc/{process.pid}/{what}").read_bytes() for what in ("cmdline", "environ")]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            alike = [(entry / what).read_bytes() for what in ("cmdline", "environ")] == own
            session = (entry / "stat").read_text().rpartition(")")[2].split()[3]
        except OSError:
            continue
        if alike and session == entry.name != str(process.pid):
            found.append(int(entry.name))
    return found


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A real supervisor, told from others by its environment, and the driver's end of its socket."""
    ours, theirs = socket.socketpair()
    with theirs, subprocess.Popen(ARGV, stdin=theirs, env={"TEST": str(tmp_path)}, start_new_session=True) as process:
        theirs.close()
        until(lambda: keepers(process))
        yield process, ours
        ours.close()
        process.wait(10)


def start(line: socket.socket, folder: Path, script: str) -> list[int]:
    """Start an attempt that leaves process ids in ``pids``; those, once there are as many as its words."""
    attempt = Attempt(id="a", kind="command", argv=("sh", "-c", script), cwd=str(folder), env={"PATH": "/usr/bin:/bin"})
    line.sendall(pack({"op": "run", "attempt": attempt.to_json()}))
    until(lambda: (folder / "done").exists())
    return [int(word) for word in (folder / "pids").read_text().split()]


def test_whatever_it_started_ends(supervisor: tuple[subprocess.Popen[bytes], socket.socket], tmp_path: Path) -> None:
    """The command, its child, and a process that has left for a session of its own."""
    process, line = supervisor
    script = "setsid sleep 999 & echo $! >> pids; sleep 999 & echo $! $$ >> pids; touch done; wait"
    pids = start(line, tmp_path, script)
    (kept,) = keepers(process)
    assert len(pids) == 3
    assert all(map(lives, pids))
    process.kill()
    until(lambda: not any(map(lives, pids)))
    until(lambda: not lives(kept))


def test_a_killed_group_is_kept_too(supervisor: tuple[subprocess.Popen[bytes], socket.socket], tmp_path: Path) -> None:
    """Launchers kill the whole group of what they started: the keeper is in none of theirs."""
    process, line = supervisor
    pids = start(line, tmp_path, "sleep 999 & echo $! $$ > pids; touch done; wait")
    os.killpg(process.pid, signal.SIGKILL)
    until(lambda: not any(map(lives, pids)))


def test_an_orderly_end_ends_the_keeper(
    supervisor: tuple[subprocess.Popen[bytes], socket.socket], tmp_path: Path
) -> None:
    """It goes with its supervisor, and kills nobody else's processes."""
    process, line = supervisor
    with subprocess.Popen(["sleep", "999"], env={"TEST": str(tmp_path)}) as other:
        (kept,) = keepers(process)
        line.close()
        process.wait(10)
        until(lambda: not lives(kept))
        assert other.poll() is None
        other.kill()


def test_signals_leave_the_keeper(supervisor: tuple[subprocess.Popen[bytes], socket.socket]) -> None:
    """What ends supervisors in order does not end the keeper before them."""
    process, _ = supervisor
    (kept,) = keepers(process)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(kept, number)
    assert lives(kept)


def test_marks_are_told_apart() -> None:
    """A process belongs to every supervisor it is under, and to no other."""
    for value, belongs in (("outer:inner", True), ("outer", False), ("", False)):
        env = {keeper.VARIABLE: value, "PATH": "/usr/bin:/bin"}
        with subprocess.Popen(["sleep", "999"], env=env) as process:
            until(lambda p=process: b"sleep" in Path(f"/proc/{p.pid}/cmdline").read_bytes())
            assert keeper._carries(Path(f"/proc/{process.pid}"), b"inner") is belongs
            process.kill()
    assert not keeper._carries(Path("/proc/none"), b"inner")
