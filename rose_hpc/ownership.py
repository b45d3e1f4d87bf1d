"""Who owns a run: one driver at a time, each under a higher epoch than those before it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from typing import Any

from rose_hpc import failpoints
from rose_hpc.errors import OwnedError, RunError
from rose_hpc.rundir import RunDir

#: the owner writes its heartbeat this often
HEARTBEAT_S = 5.0
#: a heartbeat older than this is a dead owner's (contract)
HEARTBEAT_MAX_AGE_S = 60.0


class Ownership:
    """The lock of a run, held by the one driver it may have; a dead owner's is taken over under a new epoch.

    Raises:
        OwnedError: when another driver lives; it names host, pid and job.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        try:
            self._file = os.open(run.owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(f"cannot own {run.path}: {error.strerror}", hint="is it yours to write to?") from error
        failpoints.hit("lock-opened")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise _owned(run, read_owner(run) or {}) from None
        failpoints.hit("lock-held")
        before = read_owner(run) or {}  # under the lock, so that no epoch is given twice
        elsewhere = before.get("host") != socket.gethostname()
        if before.get("pid") and elsewhere and not _is_stale(before):  # file systems whose locks do not cross nodes
            os.close(self._file)
            raise _owned(run, before)
        self._facts: dict[str, Any] = {
            "epoch": int(before.get("epoch", -1)) + 1,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since": round(time.time(), 3),
        }
        failpoints.hit("lock-unwritten")
        self._write()
        failpoints.hit("lock-written")

    @property
    def epoch(self) -> int:
        """Which driver of the run this is; every one has a higher epoch than those before it."""
        return int(self._facts["epoch"])

    def follow(self, epoch: int) -> None:
        """Make sure that ours is a later epoch than ``epoch``, should the file that said so have been lost."""
        if self.epoch <= epoch:
            failpoints.hit("lock-behind")
            self._facts["epoch"] = epoch + 1
            self._write()

    def beat(self) -> None:
        """Say that the owner lives.

        Raises:
            OwnedError: when the run was taken over meanwhile, as from a driver that was suspended for too long.
        """
        now = read_owner(self.run) or {}
        if int(now.get("epoch", -1)) > self.epoch:
            raise _owned(self.run, now)
        failpoints.hit("heartbeat")
        self._write()

    def _write(self) -> None:
        # One write of constant length, so that a reader never sees half of it
        text = json.dumps({**self._facts, "heartbeat": round(time.time(), 3)})
        os.pwrite(self._file, text.ljust(511).encode() + b"\n", 0)

    def release(self) -> None:
        """Let go of the run; idempotent."""
        if self._file >= 0:
            self._facts["pid"] = None
            try:
                with suppress(OwnedError, OSError):  # taken over, or not writable: the lock is let go of all the same
                    self.beat()
            finally:
                failpoints.hit("lock-release")
                os.close(self._file)
                self._file = -1


def read_owner(run: RunDir) -> dict[str, Any] | None:
    """The owner's file: ``epoch, host, pid`` (None once it let go), ``job, since, heartbeat``; None without one."""
    try:
        facts = json.loads(run.owner.read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def owner_lives(run: RunDir) -> bool:
    """Whether a driver of this run is alive: its heartbeat is fresh and, on this host, its process is there."""
    facts = read_owner(run)
    if not facts or not facts.get("pid") or _is_stale(facts):
        return False
    return facts["host"] != socket.gethostname() or _process_lives(int(facts["pid"]))


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_stale(facts: dict[str, Any]) -> bool:
    return bool(time.time() - float(facts.get("heartbeat", 0)) > HEARTBEAT_MAX_AGE_S)


def _owned(run: RunDir, facts: dict[str, Any]) -> OwnedError:
    job = f", job {facts['job']}" if facts.get("job") else ""
    return OwnedError(
        f"{run.path} is driven by process {facts.get('pid')} on {facts.get('host')}{job}",
        hint=f"watch it with `{run.command('status')}`",
    )
