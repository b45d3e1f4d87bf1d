"""What there is for us on this host."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Shape:
    """What a node has, or a task takes of it; infinite: nobody knows."""

    cores: float = math.inf
    memory_mb: float = math.inf
    gpus: float = math.inf

    def holds(self, task: Shape) -> int:
        """How many tasks that take so much it has room for."""
        pairs = ((self.cores, task.cores), (self.memory_mb, task.memory_mb), (self.gpus, task.gpus))
        most = min(has / takes for has, takes in pairs if takes)
        return sys.maxsize if most == math.inf else math.floor(most + 1e-9)


def available() -> Shape:
    """Cores and memory of this host that our tasks may use; nobody knows its GPUs."""
    return Shape(available_cores(), available_memory_mb())


def available_cores() -> int:
    """Cores that this process may use (its affinity, which Slurm and containers set)."""
    return len(os.sched_getaffinity(0))


def available_memory_mb(environ: Mapping[str, str] = os.environ, proc: Path = Path("/proc")) -> float:
    """Memory that our tasks may use, whole MB of 2**20 bytes; infinite where nobody says.

    It is the least of what the machine has, its control groups may, and the Slurm job was given.

    Args:
        environ: where Slurm says it.
        proc: the kernel's files about this machine and process.
    """
    return min([*_of_machine(proc), *_of_groups(proc), job_memory_mb(environ)])


def _of_machine(proc: Path) -> Iterator[int]:
    with suppress(OSError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                yield int(line.split()[1]) // 2**10


def _of_groups(proc: Path) -> Iterator[int]:
    """The limits of the control group we are in, and of those around it (cgroups(7), of both versions)."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root, name = (_GROUPS / "memory", "memory.limit_in_bytes") if kinds else (_GROUPS, "memory.max")
        inside = root / path.strip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(root):
                with suppress(OSError, ValueError):  # there is none, or it is "max"
                    yield int((folder / name).read_text()) // 2**20


def job_memory_mb(environ: Mapping[str, str], cores: int = 0) -> float:
    """What a Slurm job has on each of its nodes, as sbatch(1) tells it; infinite where that is not said, or is all.

    Args:
        environ: of the job's script; its steps are not told.
        cores: the job's on each node; 0: as ``environ`` says.
    """
    node, core, here = (_number(environ, f"SLURM_{key}") for key in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"))
    return node or core * (cores or here) or math.inf


def _number(environ: Mapping[str, str], key: str) -> int:
    text = environ.get(key, "")
    return int(text) if text.isdecimal() else 0
