"""Policies on this node: a large one is read from the run directory once, by whoever copies it, not once by every rank.

The copies are in a folder of the supervisor's own, of mode 0700, on a disk of the node. It goes with the supervisor;
when that is killed, its keeper removes it.
"""

from __future__ import annotations

import os
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rose_hpc import failpoints
from rose_hpc.execution import keeper
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.jobs import Job

POLICY = "ROSE_HPC_POLICY"
#: bytes that stay free for others
_ROOM = 256 * 1024 * 1024


class Nearby:
    """What is on this node, and who waits for it.

    Args:
        node: its name.
        jobs: of the supervisor, by their attempts.
        begin: begins a job that has waited.
        serve: has the service carry out a job of ours, of the kind ``fetch``; :meth:`fetched` is then to be called.
    """

    def __init__(
        self, node: str, jobs: Mapping[str, Job], begin: Callable[[Job], None], serve: Callable[[Job], None]
    ) -> None:
        self._node = node
        self._jobs = jobs
        self._begin = begin
        self._serve = serve
        mark = os.environ.get(keeper.VARIABLE, "").rpartition(":")[2] or uuid.uuid4().hex
        self._folder = keeper.folder_of(mark, os.environ)
        self._copies: dict[str, str] = {}  # where to read a policy that one was asked for
        self._waiting: dict[str, list[Job]] = {}
        self._count = 0

    def has(self, job: Job) -> bool:
        """Whether a job's policy is at hand; else it begins once that has been copied, or cannot be."""
        source = job.attempt.env[POLICY]
        if source in self._copies:
            self._point(job)
            return True
        if source in self._waiting:
            self._waiting[source].append(job)
            return False
        try:
            self._make_folder()
        except OSError as error:
            self._copies[source] = source
            self._tell(job, str(error))
            return True
        self._clear()
        self._waiting[source] = [job]
        self._count += 1
        target = self._folder / f"policy-{self._count}"
        facts = {**(job.attempt.policy or {}), "source": source, "target": str(target)}
        self._serve(Job(Attempt(id=f"{job.attempt.id}-policy", kind="fetch", policy=facts), b""))
        return False

    def fetched(self, fetch: Job, copied: bool, problem: str = "") -> None:
        """A policy was copied, or was not: whoever waits for it begins, and one of them tells of the problem."""
        source, target = ((fetch.attempt.policy or {})[key] for key in ("source", "target"))
        failpoints.hit("policy-settled")
        if not copied:
            keeper.remove(Path(target))
        self._copies[source] = target if copied else source
        for job in self._waiting.pop(source):
            if problem:
                self._tell(job, problem)
                problem = ""
            self._point(job)
            job.started = time.monotonic()
            self._begin(job)

    def forget(self, job: Job) -> bool:
        """Let a job go that waits; whether there was any."""
        waiting = self._waiting.get(job.attempt.env.get(POLICY, ""), [])
        if job in waiting:
            waiting.remove(job)
            return True
        return False

    def remove(self) -> None:
        """Remove everything."""
        keeper.remove(self._folder)

    def _make_folder(self) -> None:
        with suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        found = self._folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077 or not stat.S_ISDIR(found.st_mode):
            raise OSError(f"{self._folder} is somebody else's")

    def _point(self, job: Job) -> None:
        env = job.attempt.env
        job.attempt = replace(job.attempt, env={**env, POLICY: self._copies[env[POLICY]]})

    def _tell(self, job: Job, problem: str) -> None:
        text = (
            f"the policy is read from the run directory by every rank on {self._node}: no copy of it there: {problem}"
        )
        job.facts["notice"] = text
        job.log.write("stderr", f"[rose-hpc] {text}\n".encode())

    def _clear(self) -> None:
        """Remove the copies that nobody uses any more."""
        used = {job.attempt.env.get(POLICY) for job in self._jobs.values()}
        for source, copy in list(self._copies.items()):
            if copy != source and copy not in used:
                del self._copies[source]
                keeper.remove(Path(copy))


def fetch(message: Mapping[str, Any]) -> bool:
    """Copy a policy, if that brings it nearer, and see that it is the one that was recorded.

    Returns:
        whether there is a copy; not where it would be on the disk that the policy is on.

    Raises:
        RunError, OSError: there is no room for it, or it cannot be copied; nothing is left of it.
    """
    from rose_hpc import publishing  # here: a rank is smaller without it
    from rose_hpc.errors import RunError

    source, target = Path(message["source"]), Path(message["target"])
    if source.stat().st_dev == target.parent.stat().st_dev:
        return False
    disk = os.statvfs(target.parent)
    if (free := disk.f_bavail * disk.f_frsize) < message["bytes"] + _ROOM:
        raise RunError(
            f"{target.parent.parent} has {free / 1e9:.1f} GB left, and it takes {message['bytes'] / 1e9:.1f}"
        )
    failpoints.hit("policy-copying")
    try:
        if publishing.copy_tree(source, target)["digest"] != message["digest"]:
            raise RunError(f"{source} is not what the update left")
        for path in target.rglob("*"):
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~(0 if path.is_dir() else 0o222))
    except BaseException:
        keeper.remove(target)
        raise
    failpoints.hit("policy-copied")
    return True
