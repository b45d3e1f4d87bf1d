"""One process of a supervisor: its own group, its output into a log, its end in bounded time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from rose_hpc.execution.attempt import VALUE_BYTES

#: seconds between TERM and KILL
GRACE_S = 3.0
#: what a log may hold; a program that prints for ever fills no disk
LOG_BYTES = 64 * 1024 * 1024
_TAIL_LINES = 12
#: reads of 64 KiB from one pipe in a row
_AT_ONCE = 16

Stream = Literal["stdout", "stderr"]


class Log:
    """Where the output of one attempt goes: a file of bounded size, and the tail that messages need.

    Args:
        path: of the file; none if empty.
        lazy: make it only when there is something to say: a thousand functions that say nothing make no files.
    """

    def __init__(self, path: str, *, lazy: bool = False) -> None:
        self._path, self._file, self._room = path, -1, 0
        if path and not lazy:
            self._open()
        self._stdout = bytearray()
        self._cut = False
        self._tail = bytearray()
        self.problem = ""

    def write(self, stream: Stream, data: bytes) -> None:
        """Take what a stream said."""
        self._tail += data
        del self._tail[: -4 * 1024]
        if stream == "stdout":
            self._stdout += data
            self._cut = self._cut or len(self._stdout) > VALUE_BYTES
            del self._stdout[:-VALUE_BYTES]
        try:
            if self._path and self._file < 0:
                self._open()
            if self._room <= 0:
                return
            if len(data) >= self._room:
                data = data[: self._room] + b"\n[rose-hpc] this log is full; the rest of the output is left out\n"
            self._room -= len(data)
            os.write(self._file, data)
        except OSError as error:  # a full disk must not end the supervisor; the outcome says what is missing
            self.problem = f"its log could not be written: {error.strerror}"

    def close(self, note: str = "") -> None:
        """End it, with a last line of ours where there is something to say."""
        if note:
            self.write("stderr", f"[rose-hpc] {note}\n".encode())
        if self._file >= 0:
            os.close(self._file)
        self._path, self._file, self._room = "", -1, 0

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._room = LOG_BYTES - os.fstat(self._file).st_size

    @property
    def stdout(self) -> str:
        """The end of the standard output, at most VALUE_BYTES, from a line's start."""
        whole = self._stdout.partition(b"\n")[2] or self._stdout if self._cut else self._stdout
        return whole.decode(errors="replace")

    @property
    def tail(self) -> str:
        """The last lines of both streams."""
        lines = self._tail.decode(errors="replace").splitlines()
        return "\n".join(deque((line[:500] for line in lines if line.strip()), maxlen=_TAIL_LINES))


class Child:
    """A process in a group of its own. Nothing of ours runs between its fork and its exec, so that it is a quick vfork.

    Attributes:
        log: where its output goes; None between the attempts of a resident one.
        end_at: when to ask it to end (monotonic seconds), and why.
        kill_at: when to stop asking.
        stopped: for how many looks in a row it has been stopped.
    """

    def __init__(
        self, argv: Sequence[str], *, cwd: str | None, env: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.pipes: dict[int, Stream] = {}
        for stream, name in ((self.process.stdout, "stdout"), (self.process.stderr, "stderr")):
            assert stream is not None  # noqa: S101 - both are PIPE
            os.set_blocking(stream.fileno(), False)
            self.pipes[stream.fileno()] = name  # type: ignore[assignment]  # one of the two literals above
        self.log: Log | None = None
        self.end_at = float("inf")
        self.end_why = ""
        self.kill_at = float("inf")
        self.max_rss_mb: float | None = None
        self.stopped = 0

    def read(self, fd: int) -> bool:
        """Move what a pipe holds into the log; False when the pipe has ended.

        Not more than its share of who prints faster than we read: there are others, and clocks to look at.
        """
        for _ in range(_AT_ONCE):
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return True
            if self.log is not None and data:
                self.log.write(self.pipes[fd], data)
            if len(data) < 65536:
                return bool(data)
        return True

    def drain(self) -> None:
        """Read what is left, without waiting for whoever still holds the pipe open."""
        for fd in list(self.pipes):
            self.read(fd)

    def ask_to_end(self, why: str, now: float) -> None:
        """TERM to its group, and KILL after GRACE_S; asking again changes nothing."""
        if self.kill_at == float("inf"):
            self.end_why, self.end_at, self.kill_at = why, float("inf"), now + GRACE_S
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)  # a stopped process takes TERM only when it goes on

    def signal(self, number: signal.Signals) -> None:
        """To its whole group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def timers(self, now: float) -> float:
        """Do what is due; when to look again (monotonic seconds)."""
        if now >= self.end_at:
            self.ask_to_end("timeout", now)
        if now >= self.kill_at:
            self.kill_at = now + GRACE_S
            self.signal(signal.SIGKILL)
        return min(self.end_at, self.kill_at)

    def reap(self) -> int:
        """Its exit code (minus the signal's number), once its pidfd is readable; ends what is left of its group."""
        self.signal(signal.SIGKILL)  # before the leader is reaped, so that the group's number is still ours
        _, status, usage = os.wait4(self.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.max_rss_mb = round(usage.ru_maxrss / 1024, 1)
        self.drain()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        os.close(self.pidfd)
        return self.process.returncode


def python_argv(module: str, *arguments: str) -> list[str]:
    """Start one of our modules with the interpreter that runs us (never a shim: it costs 80 ms a rank).

    ``-P``: what lies in the working folder is the user's: it is not ours for having the name of one of our modules.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
