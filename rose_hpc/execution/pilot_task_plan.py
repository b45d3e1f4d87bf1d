"""What a task of a pilot will be: a pure function from an asyncflow task to a frozen plan, as for the pilot itself."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rose_hpc.errors import UsageError
from rose_hpc.execution.mpi import KEPT
from rose_hpc.execution.pilot_resources import PilotPlan, shell_safe

#: Held to a rank's cores, for speed and for determinism.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
#: Of the driver's environment, what a task gets unchanged: the pilot's own bootstrapping has altered these.
_INHERITED = (
    *("HOME", "PATH", "TMPDIR", "LC_NUMERIC", "MAKEFLAGS"),
    *("PYTHONPATH", "PYTHONNOUSERSITE", "VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT"),
)
#: Shell, before srun. What sbatch was told of tasks and memory would contradict what srun is told on its command line.
#: A lost node takes its own ranks and no others; and other steps (programs of several ranks) may run beside them.
_SRUN_SETTINGS = (
    f"unset $(env | grep -o '^SLURM_[A-Z0-9_]*' | grep -Evx '{'|'.join(KEPT)}')",
    "export SLURM_NO_KILL=set SLURM_OVERLAP=1",
)
_RANKS_PROGRAM = Path(__file__).with_name("pilot_ranks.py")


@dataclass(frozen=True)
class TaskPlan:
    """A task as the pilot gets it: ``command`` is quoted for a POSIX shell, word by word; ``pre_launch`` is shell."""

    command: str
    ranks: int
    cores_per_rank: int
    gpus_per_rank: float
    mem_mb_per_rank: int
    use_mpi: bool
    name: str
    pre_launch: tuple[str, ...] = ()


def plan_task(task: Mapping[str, Any], *, pilot: PilotPlan, environ: Mapping[str, str], folder: Path) -> TaskPlan:
    """Return what an asyncflow task dict asks of ``pilot``.

    Read from its ``task_backend_specific_kwargs`` (others are ignored): ``ranks``, ``cores_per_rank``,
    ``gpus_per_rank``, ``mem_per_rank`` (MB) or ``mem_gb_per_rank``, ``environment`` (dict), ``cwd`` (default:
    ``folder``), ``name``, and ``use_mpi`` (default False: the end of one rank leaves the others running).

    Raises:
        UsageError: not an executable task, values that make no sense, or more cores than the pilot has.
    """
    name = str(task.get("name") or task["uid"])
    if not task.get("executable"):
        raise UsageError(
            f"task {name!r} is a Python function, which the pilot cannot run: it starts programs",
            hint="make it an executable task, or use the embedded engine",
        )
    asked = dict(task.get("task_backend_specific_kwargs") or {})
    ranks, cores = _whole(asked, "ranks", 1, name), _whole(asked, "cores_per_rank", 1, name)
    gpus = float(asked.get("gpus_per_rank") or 0)
    mem_mb = asked.get("mem_per_rank") or float(asked.get("mem_gb_per_rank") or 0) * 1024
    use_mpi = bool(asked.get("use_mpi", False))
    if pilot.cores and ranks * cores > pilot.cores:
        raise UsageError(
            f"task {name!r} asks for {ranks} ranks of {cores} cores = {ranks * cores}; the pilot has {pilot.cores}",
            hint="give the pilot more 'cores', or the task fewer ranks",
        )
    argv = [str(task["executable"]), *map(str, task.get("arguments") or ())]
    if pilot.forks and ranks > 1 and not use_mpi:
        # Without srun or mpirun there is nobody to start the ranks: one task starts them all
        argv = [sys.executable, "-I", "-S", str(_RANKS_PROGRAM), str(ranks), *argv]
        cores, gpus, mem_mb, ranks = ranks * cores, ranks * gpus, ranks * mem_mb, 1
    variables = _variables(asked, environ, name)
    words = _env_words(argv, variables, str(asked.get("cwd") or folder), environ)
    if any("\0" in word for word in words):
        raise UsageError(f"the command of task {name!r} has a NUL byte in it")
    label = str(asked.get("name") or name)
    safe = label if shell_safe(label) else ""
    pre_launch = () if pilot.forks else _SRUN_SETTINGS
    return TaskPlan(shlex.join(words), ranks, cores, gpus, int(mem_mb), use_mpi and ranks > 1, safe, pre_launch)


def _whole(asked: Mapping[str, Any], key: str, default: int, name: str) -> int:
    value = asked.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"task {name!r} has {key}={value!r}", hint="it must be a whole number, at least 1")
    return value


def _variables(asked: Mapping[str, Any], environ: Mapping[str, str], name: str) -> dict[str, str]:
    given = {str(key): str(value) for key, value in (asked.get("environment") or {}).items()}
    for key in given:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise UsageError(f"task {name!r} sets {key!r}, which is no name of an environment variable")
    threads = dict.fromkeys(_THREAD_VARIABLES, str(asked.get("cores_per_rank", 1)))
    return {**{key: environ[key] for key in _INHERITED if key in environ}, **threads, **given}


def _env_words(argv: Sequence[str], variables: Mapping[str, str], cwd: str, environ: Mapping[str, str]) -> list[str]:
    # env(1) sets all of this without a shell; radical.pilot's own way leaves $ and ` in values to be executed.
    unset = [word for key in _INHERITED if key not in variables and key not in environ for word in ("-u", key)]
    words = ["env", "-C", cwd, *unset, f"PWD={cwd}", *(f"{key}={value}" for key, value in variables.items())]
    if "=" in argv[0]:  # env would take the program for one more assignment
        words += ["/bin/sh", "-c", 'exec "$@"', "sh"]
    return [*words, *argv]
