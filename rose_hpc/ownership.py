"""Who owns a run: one driver at a time, each under a higher epoch than those before it.

On one machine, and wherever locks cross machines, a lock decides, and the kernel lets go of a dead driver's. Where they
do not, the owner's heartbeat decides. It is watched for changes and never compared with a clock of ours alone: the
clocks of two machines, or of one before and after it was set, need not agree.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rose_hpc import failpoints
from rose_hpc.errors import OwnedError, RunError
from rose_hpc.refusals import cause_of, named, next_step
from rose_hpc.rundir import RunDir

log = logging.getLogger(__name__)

#: the owner writes its heartbeat this often
HEARTBEAT_S = 5.0
#: a heartbeat older than this is a dead owner's (contract)
HEARTBEAT_MAX_AGE_S = 60.0
#: one that looks so old is watched for so long all the same, because it may be the clocks that differ
_WATCH_S = 3 * HEARTBEAT_S
_LOOK_S = 0.25
#: so long may one who has the lock take to say so
_HOLDER_S = 2.0
#: what file systems without locks answer
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Ownership:
    """The lock of a run, held by the one driver it may have; a dead owner's is taken over under a new epoch.

    An owner that may live on another machine is watched first, for up to HEARTBEAT_MAX_AGE_S.

    Raises:
        OwnedError: when another driver lives; it names host, pid and job.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        with named(RunError, f"cannot own {run.path}"):
            self._file = os.open(run.owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._acquire()
            except BaseException:
                with suppress(OSError):
                    os.close(self._file)
                raise

    def _acquire(self) -> None:
        failpoints.hit("lock-opened")
        self._locked = self._lock()
        failpoints.hit("lock-held")
        before = read_owner(self.run) or {}  # under the lock, so that no epoch is given twice
        here = before.get("host") == socket.gethostname()
        if before.get("pid") and not (here and (self._locked or not _process_lives(int(before["pid"])))):
            _see_dead(self.run, before)
        self._facts: dict[str, Any] = {
            "epoch": self._claim(int(before.get("epoch", -1)) + 1),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since": round(time.time(), 3),
        }
        failpoints.hit("lock-unwritten")
        self._write()
        failpoints.hit("lock-written")
        if self._newest_claim() > self.epoch:  # of one who thought that we had died in between
            raise _owned(self.run, read_owner(self.run) or {})

    def _lock(self) -> bool:
        """Whether we have the lock; False where there are none, or a machine has it that may be dead.

        Raises:
            OwnedError: somebody else has it.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _holder(self.run)
            if not owner.get("pid") or owner.get("host") == socket.gethostname():
                raise _owned(self.run, owner) from None
            # A file server keeps the lock of a machine that died until its lease has ended; the heartbeat tells
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                what = f"cannot lock {self.run.owner}: {cause_of(error)}"
                raise RunError(what, hint=next_step(error)) from error
            log.info("%s: there are no locks here; heartbeats decide", self.run.path)
            return False
        return True

    def _claim(self, epoch: int) -> int:
        """An epoch from ``epoch`` on that nobody has: of two who see a dead owner at once, one gets it.

        Raises:
            OwnedError: who got it before us lives.
        """
        self._claims.mkdir(exist_ok=True)
        while True:
            newest = self._newest_claim()
            if newest >= epoch:
                self._see_claimant_dead(newest)
                epoch = newest + 1
            with suppress(FileExistsError):  # another was faster
                file = os.open(self._claims / str(epoch), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                os.write(file, socket.gethostname().encode())
                os.close(file)
                failpoints.hit("lock-claimed")
                return epoch

    def _newest_claim(self) -> int:
        return max((int(path.name) for path in self._claims.iterdir() if path.name.isdigit()), default=-1)

    def _see_claimant_dead(self, epoch: int) -> None:
        """Return once whoever claimed ``epoch`` is known to have died, perhaps before it wrote that it owns the run.

        Raises:
            OwnedError: it lives.
        """
        if self._locked and (self._claims / str(epoch)).read_text() == socket.gethostname():
            return  # the lock is ours now, so that it is gone
        end = time.monotonic() + _WATCH_S
        while time.monotonic() < end:
            now = read_owner(self.run) or {}
            if int(now.get("epoch", -1)) >= epoch:
                if now.get("pid"):
                    _see_dead(self.run, now)
                return
            time.sleep(_LOOK_S)

    @property
    def _claims(self) -> Path:
        return self.run.path / ".owners"

    @property
    def epoch(self) -> int:
        """Which driver of the run this is; every one has a higher epoch than those before it."""
        return int(self._facts["epoch"])

    def follow(self, epoch: int) -> None:
        """Make sure that ours is a later epoch than ``epoch``, should the file that said so have been lost."""
        if self.epoch <= epoch:
            failpoints.hit("lock-behind")
            self._facts["epoch"] = self._claim(epoch + 1)
            self._write()

    def check(self) -> None:
        """Make sure that the run is still ours: called before anything is recorded or published.

        Raises:
            OwnedError: when the run was taken over meanwhile, as from a driver that was suspended for too long.
        """
        now = read_owner(self.run) or {}
        if int(now.get("epoch", -1)) > self.epoch:
            raise _owned(self.run, now)

    def beat(self) -> None:
        """Say that the owner lives.

        Raises:
            OwnedError: as :meth:`check`.
        """
        self.check()
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
                with suppress(OSError):  # closed it is all the same, and why we leave matters more
                    os.close(self._file)
                self._file = -1


class Watch:
    """Whether a driver lives, as its heartbeats tell one who looks again and again.

    Args:
        owner: the run's owner file.
        epoch: the driver's.
        patience_s: how long it may be without a heartbeat, by our own steady clock.
    """

    def __init__(self, owner: Path, epoch: int, patience_s: float = HEARTBEAT_MAX_AGE_S) -> None:
        self.owner = owner
        self.epoch = epoch
        self.patience_s = patience_s
        self._last: object = None
        self._changed = time.monotonic()

    def lives(self) -> bool:
        """False once it let go, was followed by another, or has been silent for too long."""
        facts = _read(self.owner)
        if facts is None:  # being rewritten, or the file system stutters: its silence decides
            return time.monotonic() - self._changed < self.patience_s
        if int(facts.get("epoch", -1)) != self.epoch or facts.get("pid") is None:
            return False
        if facts.get("heartbeat") != self._last:
            self._last, self._changed = facts.get("heartbeat"), time.monotonic()
        return time.monotonic() - self._changed < self.patience_s


def _see_dead(run: RunDir, before: dict[str, Any]) -> None:
    """Return once the owner ``before`` is known to be dead, or has let go.

    Raises:
        OwnedError: it lives, or another came.
    """
    patience_s = _WATCH_S if _is_stale(before) else HEARTBEAT_MAX_AGE_S
    watch = Watch(run.owner, int(before.get("epoch", -1)), patience_s)
    log.warning(
        "process %s on %s did not let go of this run: seeing for %.0f s whether it lives",
        *(before.get("pid"), before.get("host"), patience_s),
    )
    while watch.lives():
        now = read_owner(run) or before
        if now.get("heartbeat") != before.get("heartbeat"):
            raise _owned(run, now)
        time.sleep(_LOOK_S)
    now = read_owner(run) or {}
    if now.get("pid") and now.get("epoch") != before.get("epoch"):
        raise _owned(run, now)


def _holder(run: RunDir) -> dict[str, Any]:
    """Who has the lock; one that has only just got it may not have said so yet, and the file names one that is dead."""
    end = time.monotonic() + _HOLDER_S
    while True:
        facts = read_owner(run) or {}
        said = facts.get("pid") and (facts.get("host") != socket.gethostname() or _process_lives(int(facts["pid"])))
        if said or time.monotonic() > end:
            return facts
        time.sleep(0.02)


def read_owner(run: RunDir) -> dict[str, Any] | None:
    """The owner's file: ``epoch, host, pid`` (None once it let go), ``job, since, heartbeat``; None without one."""
    return _read(run.owner)


def _read(owner: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(owner.read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def owner_lives(run: RunDir) -> bool:
    """Whether a driver of this run seems alive, at one look: its heartbeat is fresh and, on this host, it is there.

    The learners of a population have the driver of their run.
    """
    if run.within is not None and not run.owner.exists():
        return owner_lives(run.within)
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
    # one from the future is no younger: the clock was set back since
    return bool(abs(time.time() - float(facts.get("heartbeat", 0))) > HEARTBEAT_MAX_AGE_S)


def _owned(run: RunDir, facts: dict[str, Any]) -> OwnedError:
    job = f", job {facts['job']}" if facts.get("job") else ""
    return OwnedError(
        f"{run.path} is driven by process {facts.get('pid')} on {facts.get('host')}{job}",
        hint=f"watch it with `{run.command('status')}`",
    )
