"""What there is for us on this host."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores that this process may use (its affinity, which Slurm and containers set)."""
    return len(os.sched_getaffinity(0))


def available_memory_gb(environ: Mapping[str, str] = os.environ, proc: Path = Path("/proc")) -> float:
    """Memory that our tasks may use, GB of 2**30 bytes: the least of the machine's, its control groups' and the job's.

    Args:
        environ: where Slurm says what the job has on each node.
        proc: the kernel's files about this machine and process.

    Returns:
        infinity where nobody says.
    """
    return min([*_of_machine(proc), *_of_groups(proc), *_of_job(environ)], default=math.inf)


def _of_machine(proc: Path) -> Iterator[float]:
    with suppress(OSError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                yield int(line.split()[1]) / 2**20


def _of_groups(proc: Path) -> Iterator[float]:
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
                    yield int((folder / name).read_text()) / 2**30


def _of_job(environ: Mapping[str, str]) -> Iterator[float]:
    """What sbatch(1) and srun(1) say, in MB; 0 means all that the node has."""
    with suppress(KeyError, ValueError):
        if whole := int(environ["SLURM_MEM_PER_NODE"]):
            yield whole / 2**10
    with suppress(KeyError, ValueError):
        yield int(environ["SLURM_MEM_PER_CPU"]) * int(environ["SLURM_CPUS_ON_NODE"]) / 2**10
