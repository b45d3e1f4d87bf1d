"""Policies on this node: a large one is read from the run directory once, by whoever copies it, not once by every rank.

The copies are in a folder of the supervisor's own, of mode 0700, on a disk of the node. It goes with the supervisor;
when that is killed, its keeper removes it.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rose_hpc.execution import keeper
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.jobs import Job

POLICY = "ROSE_HPC_POLICY"
#: bytes that stay free for others
_ROOM = 256 * 1024 * 1024


class Nearby:
    """What is on this node, and who waits for it."""

    def __init__(self) -> None:
        mark = os.environ.get(keeper.VARIABLE, "").rpartition(":")[2] or uuid.uuid4().hex
        self.folder = keeper.folder_of(mark, os.environ)
        self._copies: dict[str, str] = {}  # where to read a policy that one was asked for
        self._waiting: dict[str, list[Job]] = {}
        self._count = 0

    def has(self, job: Job) -> bool:
        """Whether it is known where the job reads its policy; if so, the job is told."""
        source = job.attempt.env[POLICY]
        if (copy := self._copies.get(source)) is not None:
            job.attempt = replace(job.attempt, env={**job.attempt.env, POLICY: copy})
        return copy is not None

    def wait(self, job: Job) -> Attempt | None:
        """Have the job wait for its policy; what is to be carried out for that, if nobody else waits for it.

        Raises:
            OSError: there is no folder to copy it to.
        """
        source = job.attempt.env[POLICY]
        if (waiting := self._waiting.get(source)) is not None:
            waiting.append(job)
            return None
        with suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        found = self.folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077 or not stat.S_ISDIR(found.st_mode):
            raise OSError(f"{self.folder} is somebody else's")
        self._waiting[source] = [job]
        self._count += 1
        target = self.folder / f"policy-{self._count}"
        facts = {**(job.attempt.policy or {}), "source": source, "target": str(target)}
        return Attempt(id=f"{job.attempt.id}-policy", kind="fetch", policy=facts)

    def settle(self, source: str, target: str, copied: bool) -> list[Job]:
        """From now on a policy is read from its copy, if it was copied; who has waited for it."""
        if not copied:
            keeper.remove(Path(target))
        self._copies[source] = target if copied else source
        return self._waiting.pop(source, [])

    def give_up(self, job: Job) -> None:
        """From now on this job's policy is read where it is."""
        self._copies[job.attempt.env[POLICY]] = job.attempt.env[POLICY]

    def forget(self, job: Job) -> bool:
        """Let a job go that waits; whether there was any."""
        waiting = self._waiting.get(job.attempt.env.get(POLICY, ""), [])
        if job in waiting:
            waiting.remove(job)
            return True
        return False

    def clear(self, used: Collection[str]) -> None:
        """Remove the copies that nobody uses."""
        for source, copy in list(self._copies.items()):
            if copy != source and copy not in used:
                del self._copies[source]
                keeper.remove(Path(copy))

    def remove(self) -> None:
        """Remove everything."""
        keeper.remove(self.folder)


def fetch(message: Mapping[str, Any]) -> bool:
    """Copy a policy, if that brings it nearer, and see that it is the one that was recorded.

    Returns:
        whether there is a copy; not where it would be on the disk that the policy is on.

    Raises:
        RunError, OSError: there is no room for it, or it cannot be copied; nothing is left of it.
    """
    from rose_hpc import failpoints, publishing
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
        publishing.copy_tree(source, target)
        if publishing.tree_facts(target)["digest"] != message["digest"]:
            raise RunError(f"{source} is not what the update left")
        for path in target.rglob("*"):
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~(0 if path.is_dir() else 0o222))
    except BaseException:
        keeper.remove(target)
        raise
    failpoints.hit("policy-copied")
    return True
