"""Processes that left their group and lost their parent: a supervisor adopts them, and ends them with their attempt."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

#: in the environment of everything that belongs to an attempt, so that its orphans can be told from another's
ATTEMPT_VARIABLE = "ROSE_HPC_ATTEMPT"
_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """Have the kernel hand this process every orphan among its descendants (Linux: a child subreaper)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(known: Collection[int], attempt: str | None) -> list[int]:
    """Kill and reap adopted processes.

    Args:
        known: children of ours that are no orphans.
        attempt: only this attempt's; None: all.

    Returns:
        the ids of those that were killed.
    """
    killed = []
    for pid in _children():
        if pid in known or (attempt is not None and not _belongs(pid, attempt)):
            continue
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # if it takes longer to die, the next look reaps it
    return killed


def end_all_orphans(dying: Collection[int], timeout_s: float) -> None:
    """Kill adopted processes until there are none: those that die hand their own children on to us.

    Args:
        dying: children of ours that have been killed; they are not reaped here.
        timeout_s: after which the rest is left to the kernel.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and (end_orphans(dying, None) or not all(map(_is_zombie, dying))):
        time.sleep(0.01)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True  # gone


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []  # a kernel without it: process groups and the parents' death signal remain


def _belongs(pid: int, attempt: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return True
    # a zombie has none, and some kernels say so by giving nothing: reap it
    return not environment or f"{ATTEMPT_VARIABLE}={attempt}".encode() in environment.split(b"\0")
