"""How a merge is carried out: by one process, or in parts by several at once, on as many nodes as it is worth.

The parts need no lock: a bank's columns lie at known offsets. One attempt makes the bank and reserves its space, the
next ones fill it side by side, each on a node of its own or as the ranks of an MPI program, and a last one digests what
nobody has seen whole and says what the bank is. The bank is the same, whatever the way.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.child import python_argv
from rose_hpc.execution.engine import Engine
from rose_hpc.experience.workers import default_workers
from rose_hpc.machine import available_cores

#: file systems whose clients write by the page: two nodes that write to one page may lose what one of them wrote
_BY_THE_PAGE = {"nfs", "nfs4", "cifs", "smb3"}
#: bytes that a further node must have to copy: in the time they take, two more attempts can be had
_WORTH_A_NODE = 512 * 1024 * 1024


@dataclass(frozen=True)
class Way:
    """How a merge is carried out.

    Attributes:
        name: ``threads`` of one process, while shards still come (``stream``) or not, processes on several ``nodes``,
            or MPI ranks through HDF5 (``mpio``).
        parts: processes that copy.
        threads: of each of them.
        cores: that one of them takes.
    """

    name: Literal["threads", "stream", "nodes", "mpio"] = "threads"
    parts: int = 1
    threads: int = 1
    cores: int = 1


def choose_way(
    size: int, nodes: Sequence[int], asked: str = "auto", workers: int | None = None, file_system: str = ""
) -> Way:
    """The way to merge shards.

    Args:
        size: of the shards, bytes.
        nodes: how many cores each node has free (late environments may have the others); empty where nobody knows.
        asked: ``threads`` (``stream``, when all shards are there), ``nodes`` or ``mpio``; ``auto``: what is fastest.
        workers: threads on each node; None: as many as are useful.
        file_system: the kernel's name of the bank's.
    """
    widest = max(nodes, default=available_cores())
    threads = min(workers or default_workers(size, widest), widest)
    whole = max(widest // 2 + 1, threads)  # so many that no node takes two parts
    able = max(1, sum(cores >= whole for cores in nodes))
    if asked == "mpio":
        return Way("mpio", threads * able)
    parts = min(able, size // _WORTH_A_NODE) if asked == "auto" else able
    if asked in ("threads", "stream") or parts < 2 or (asked == "auto" and file_system in _BY_THE_PAGE):
        return Way("threads", 1, threads, threads)
    return Way("nodes", parts, threads, whole)


@lru_cache(maxsize=16)  # a run's does not change
def file_system_of(path: Path) -> str:
    """The kernel's name of a path's file system, as ``ext4``; empty where it does not tell."""
    try:
        device, mounts = path.stat().st_dev, Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    return file_system_on(f"{os.major(device)}:{os.minor(device)}", mounts)


def file_system_on(device: str, mounts: str) -> str:
    """The type of a device's file system in the text of ``/proc/self/mountinfo``; empty where it is not there."""
    for line in mounts.splitlines():
        place, _, source = line.partition(" - ")
        if place.split()[2] == device:
            return source.split()[0]
    return ""


async def merge(engine: Engine, attempt: Attempt, way: Way) -> Outcome:
    """Carry out a merge, whole; what fails in one part fails it, and ends the others.

    Args:
        engine: what carries attempts out.
        attempt: the whole merge.
        way: how.

    Raises:
        EngineError: when the engine itself failed.
    """
    if way.name == "threads":
        return (await engine.run(attempt))[0]
    seconds = 0.0
    outcome = Outcome(attempt.id, ok=True)
    try:
        for phase in (_begin, _copy_on_nodes if way.name == "nodes" else _copy_in_ranks, _finish):
            outcome = await phase(engine, attempt, way)
            seconds += outcome.seconds
            if not outcome.ok:
                break
        return replace(outcome, id=attempt.id, seconds=round(seconds, 4))
    finally:
        bank = str((attempt.merge or {})["bank"])
        await asyncio.to_thread(shutil.rmtree, Path(f"{bank}.parts"), ignore_errors=True)


async def _begin(engine: Engine, attempt: Attempt, way: Way) -> Outcome:
    return (await engine.run(phase_of(attempt, "begin", cores=1)))[0]


async def _finish(engine: Engine, attempt: Attempt, way: Way) -> Outcome:
    return (await engine.run(phase_of(attempt, "finish", cores=way.threads, shards={}, parts=way.parts)))[0]


async def _copy_on_nodes(engine: Engine, attempt: Attempt, way: Way) -> Outcome:
    """All parts at once; the first failure, or the last that ended."""
    tasks = [
        asyncio.create_task(
            engine.run(phase_of(attempt, "copy", f"-{part}", log="", shards={}, part=part, parts=way.parts))
        )
        for part in range(way.parts)
    ]
    try:
        for ended in asyncio.as_completed(tasks):
            outcome, _ = await ended
            if not outcome.ok:
                return outcome
        return max((task.result()[0] for task in tasks), key=lambda outcome: outcome.seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy_in_ranks(engine: Engine, attempt: Attempt, way: Way) -> Outcome:
    """A program of MPI ranks."""
    arguments = attempt.merge or {}
    argv = python_argv(
        "rose_hpc.experience.mpio", "--part", str(arguments["bank"]), *([] if arguments["verify"] else ["--no-verify"])
    )
    ranks = replace(
        attempt, id=f"{attempt.id}-copy", kind="command", argv=argv, merge=None, ranks=way.parts, cores=way.parts
    )
    outcome, _ = await engine.run(ranks)
    said = [line.removeprefix("error: ") for line in outcome.tail.splitlines() if line.startswith("error: ")]
    return replace(outcome, reason="merge", message=said[0]) if said and not outcome.ok else outcome


def phase_of(
    attempt: Attempt,
    phase: str,
    suffix: str = "",
    *,
    log: str | None = None,
    cores: int | None = None,
    **arguments: Any,
) -> Attempt:
    """The attempt at one phase of a merge."""
    return replace(
        attempt,
        id=f"{attempt.id}-{phase}{suffix}",
        log=attempt.log if log is None else log,
        cores=cores or attempt.cores,
        merge={**(attempt.merge or {}), "phase": phase, **arguments},
    )
