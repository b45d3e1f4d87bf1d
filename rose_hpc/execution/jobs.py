"""What a supervisor has under way: an attempt, the process that works on it, and how that ended."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rose_hpc.execution.attempt import TASK_VARIABLES, Attempt
from rose_hpc.execution.child import Child, Log, python_argv
from rose_hpc.execution.frames import Receiver, pack

#: how often it is seen whether what runs is stopped, and how many times in a row it may be
STOPPED_LOOK_S = 5.0
STOPPED_LOOKS = 4


class Job:
    """An attempt under way, and the process that works on it now."""

    def __init__(self, attempt: Attempt, payload: bytes, lane: int = 0) -> None:
        self.attempt = attempt
        self.payload = payload
        self.lane = lane
        self.log = Log(attempt.log, lazy=attempt.kind == "function")
        self.started = time.monotonic()
        self.child: Child | None = None
        self.facts: dict[str, Any] = {}  # of its outcome
        self.value = b""


class Host:
    """A resident Python process (:mod:`rose_hpc.execution.host`) that calls functions, seals and merges.

    Args:
        service: whether it is to seal and merge.
        variables: what it begins with in its environment.

    Attributes:
        path: where it has been told to find modules.
    """

    def __init__(self, service: bool, variables: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        fd = theirs.fileno()
        env = {k: v for k, v in os.environ.items() if k not in TASK_VARIABLES} | dict(variables)
        argv = python_argv("rose_hpc.execution.host", str(fd), *(["--service"] if service else []))
        try:
            with theirs:
                self.child = Child(argv, cwd=None, env=env, pass_fds=[fd])
        except OSError:
            ours.close()
            raise
        self.socket = ours
        self.receiver = Receiver(ours)
        self.job: Job | None = None
        self.operation = ""
        self.variables = variables
        self.path: list[str] = []
        self.retired = False

    def ask(
        self, job: Job, operation: str, message: Mapping[str, Any], payload: bytes, timeout_s: float | None
    ) -> None:
        """Give it one thing to do; its output goes to the job's log."""
        self.job, self.operation, self.child.log, job.child = job, operation, job.log, self.child
        self.child.end_at = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        with suppress(ConnectionError):  # it is dead: its pidfd tells, and what it should have done ends with it
            self.socket.sendall(pack({"op": operation, **message}, payload))

    def release(self) -> None:
        """Back to rest."""
        self.child.drain()
        self.job, self.child.log, self.child.end_at = None, None, float("inf")

    def retire(self) -> None:
        """End it; it is given nothing more."""
        self.retired = True
        self.child.ask_to_end("retired", time.monotonic())


def why_it_ended(child: Child, code: int, timeout_s: float | None) -> tuple[str, str]:
    """Reason and message for a process that did not end well."""
    if child.end_why == "timeout":
        return "timeout", f"ran longer than its timeout_s of {timeout_s:g}" if timeout_s else "took too long"
    if child.end_why == "stopped":
        return "stopped", f"had been stopped (SIGSTOP) for {STOPPED_LOOK_S * STOPPED_LOOKS:g} s, and was ended"
    if child.end_why:
        return child.end_why, child.end_why
    if code == -signal.SIGKILL:
        used = "" if child.max_rss_mb is None else f", having used {child.max_rss_mb:,.0f} MiB"
        return "signal", f"was killed by SIGKILL{used}: was there no memory left?"
    if code < 0:
        name = signal.Signals(-code).name if -code in {int(s) for s in signal.Signals} else f"signal {-code}"
        return "signal", f"was killed by {name}"
    return "exit", f"exited with code {code}"
