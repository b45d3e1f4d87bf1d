"""One process of a supervisor: its output is kept within bounds, and it ends with everything it started."""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rose_hpc.execution import child as child_module
from rose_hpc.execution.child import GRACE_S, Child, Log, python_argv

PATIENCE_S = 20.0  # for conditions on a busy machine; never waited for when all is well


def sh(script: str, **env: str) -> Child:
    return Child(["/bin/sh", "-c", script], cwd=None, env={"PATH": os.environ["PATH"], **env})


def wait(child: Child) -> int:
    """Its exit code, read and reaped as a supervisor does it."""
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    assert poll.poll(PATIENCE_S * 1000), "the process did not end"
    return child.reap()


def until_read(child: Child, text: bytes, path: Path) -> None:
    """Move output into the log until it says ``text``."""
    end = time.monotonic() + PATIENCE_S
    while text not in path.read_bytes():
        assert select.select(list(child.pipes), [], [], max(0.0, end - time.monotonic()))[0], "it said nothing"
        for fd in child.pipes:
            child.read(fd)


def gone(pid: int) -> bool:
    """Whether a process, not our child, has ended or is a zombie somebody else has to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until_gone(pid: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while not gone(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        os.sched_yield()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stage.log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    log = Log(str(path))
    yield log
    log.close()


# -- logs --------------------------------------------------------------------------------------------------------------


def test_a_log_has_both_streams_in_order(path, log):
    """The file has everything both streams said; only standard output is a value."""
    for stream, data in (("stdout", b"1\n"), ("stderr", b"warning\n"), ("stdout", b"2\n")):
        log.write(stream, data)
    log.close("x: exited with code 3")
    assert path.read_bytes() == b"1\nwarning\n2\n[rose-hpc] x: exited with code 3\n"
    assert log.stdout == "1\n2\n"


def test_attempts_follow_each_other_in_a_log(path):
    """A repetition does not erase what the attempt before it said."""
    for text in (b"first\n", b"second\n"):
        log = Log(str(path))
        log.write("stdout", text)
        log.close()
        log.close()  # idempotent
    assert path.read_bytes() == b"first\nsecond\n"


def test_the_tail_is_the_last_lines(log):
    """A message gets the last few lines of both streams, none of them endless, blank ones left out."""
    log.write("stdout", b"".join(b"line %d\n\n" % i for i in range(100)))
    log.write("stderr", b"x" * 2000 + b"\n\xff\n")
    lines = log.tail.splitlines()
    assert lines[0] == "line 90"
    assert lines[-2:] == ["x" * 500, "\N{REPLACEMENT CHARACTER}"]
    assert len(lines) == 12


def test_a_value_is_the_end_of_the_output(log, monkeypatch):
    """Of megabytes of output the last VALUE_BYTES are kept, where a check's number stands."""
    monkeypatch.setattr(child_module, "VALUE_BYTES", 100)
    for _ in range(50):
        log.write("stdout", b"noise noise\n")
    log.write("stdout", b"42.5\n")
    assert 100 - len("noise noise\n") < len(log.stdout) <= 100
    assert log.stdout.endswith("noise\n42.5\n")
    assert log.stdout.startswith("noise noise\n"), "it begins with a whole line"


def test_a_log_is_of_bounded_size(path, monkeypatch):
    """A program that prints for ever fills no disk: the log says that it is full, once, over all attempts."""
    monkeypatch.setattr(child_module, "LOG_BYTES", 1000)
    for _ in range(3):
        log = Log(str(path))
        for _ in range(30):
            log.write("stdout", b"x" * 99 + b"\n")
        log.close("a note")
    text = path.read_bytes()
    assert len(text) < 1200
    assert text.count(b"this log is full") == 1


def test_a_full_disk_ends_nothing(log, monkeypatch):
    """When the log cannot be written the outcome says so, and what was said is still known."""

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(child_module.os, "write", full)
    log.write("stdout", b"7\n")
    assert (log.stdout, log.problem) == ("7\n", "its log could not be written: No space left on device")


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_process_says_what_it_has_to(path, log):
    """Output, exit code and memory of a process are known when it has ended, however much it said at last."""
    process = sh('echo "$GREETING"; echo oops >&2; head -c 200000 /dev/zero | tr "\\0" x; exit 3', GREETING="a'b")
    process.log = log
    until_read(process, b"xxx", path)
    while any([process.read(fd) for fd in process.pipes]):  # noqa: C419 - both are read, every time
        select.select(list(process.pipes), [], [], PATIENCE_S)
    assert wait(process) == 3
    assert b"a'b\n" in path.read_bytes()
    assert path.stat().st_size == len("a'b\noops\n") + 200_000
    assert process.max_rss_mb > 0


def test_a_program_that_is_not_there_is_an_error():
    """What cannot be started is an OSError at once, for the supervisor to report."""
    with pytest.raises(FileNotFoundError):
        Child(["/no/such/program"], cwd=None, env={})
    with pytest.raises(FileNotFoundError):
        Child(["/bin/true"], cwd="/no/such/folder", env={})


def test_an_end_takes_the_whole_group(path, log):
    """When its leader has ended, what it left running in the background is ended too, though it ignores TERM."""
    process = sh(
        """sh -c 'trap "" TERM HUP; echo "pid $$"; i=0; while [ $i -lt 60 ]; do sleep 1; i=$((i+1)); done' & exit 0"""
    )
    process.log = log
    until_read(process, b"\n", path)
    background = int(path.read_text().split()[1])
    assert wait(process) == 0
    until_gone(background)


def test_asking_to_end_is_term_and_then_kill(path, log):
    """TERM first; to one that does not listen KILL after the grace; asked again, nothing changes."""
    process = sh("trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done")
    process.log = log
    until_read(process, b"ready", path)
    now = time.monotonic()
    process.ask_to_end("cancelled", now)
    process.ask_to_end("another reason", now + 1)
    assert (process.end_why, process.kill_at) == ("cancelled", now + GRACE_S)
    until_read(process, b"asked", path)
    assert process.timers(now + GRACE_S - 0.1) == now + GRACE_S
    process.timers(now + GRACE_S)
    assert wait(process) == -signal.SIGKILL


def test_a_timeout_is_asked_for_when_it_is_due(path, log):
    """Nothing happens before end_at; at end_at the process is asked to end, and the reason is its timeout."""
    process = sh("echo ready; exec sleep 60")
    process.log = log
    until_read(process, b"ready", path)
    assert process.timers(time.monotonic()) == math.inf
    now = process.end_at = time.monotonic() + 100
    assert process.timers(now - 1) == now
    assert process.end_why == ""
    assert process.timers(now) == now + GRACE_S
    assert process.end_why == "timeout"
    assert wait(process) == -signal.SIGTERM


def test_a_stopped_process_can_be_ended(path, log):
    """A process that was stopped (as a debugger or a user would) still takes TERM."""
    process = sh("echo ready; exec sleep 60")
    process.log = log
    until_read(process, b"ready", path)
    process.signal(signal.SIGSTOP)
    process.ask_to_end("cancelled", time.monotonic())
    assert wait(process) == -signal.SIGTERM


def test_our_modules_run_with_our_interpreter():
    """Ranks are started by the interpreter itself: a shim costs 80 ms each."""
    assert python_argv("rose_hpc.execution.rank", "7") == [sys.executable, "-P", "-m", "rose_hpc.execution.rank", "7"]
