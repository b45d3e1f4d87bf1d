"""Which engine runs a workflow: the pilot inside a Slurm job, the embedded engine elsewhere, or the one asked for."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rose_hpc.errors import UsageError

EngineName = Literal["embedded", "pilot"]

#: of a job whose end nobody tells, what the pilot asks for
_RUNTIME_MIN = 24 * 60
#: radical.pilot's description of an allocation that we are in: its agent forks here, and places ranks with srun
_INSIDE = {
    "default_schema": "interactive",
    "schemas": {
        "interactive": {"job_manager_endpoint": "fork://localhost", "filesystem_endpoint": "file://localhost"},
        "batch": {"job_manager_endpoint": "slurm://localhost", "filesystem_endpoint": "file://localhost"},
    },
    "resource_manager": "SLURM",
    "agent_config": "default",
    "agent_scheduler": "CONTINUOUS",
    "agent_spawner": "POPEN",
    "launch_methods": {"order": ["SRUN"], "SRUN": {}},
    "rp_version": "installed",
    "virtenv_mode": "local",
    "python_dist": "default",
}


def choose_engine(asked: str = "auto", environ: Mapping[str, str] | None = None) -> EngineName:
    """The engine to use.

    Args:
        asked: ``embedded``, ``pilot``, or ``auto``: ``$ROSE_HPC_ENGINE`` if set, else the pilot inside a Slurm job.
        environ: the environment to look at; None: this process's.

    Raises:
        UsageError: for another word.
    """
    environ = os.environ if environ is None else environ
    if asked == "auto":
        asked = environ.get("ROSE_HPC_ENGINE") or ("pilot" if environ.get("SLURM_JOB_ID") else "embedded")
    if asked not in ("embedded", "pilot"):
        raise UsageError(f"there is no engine {asked!r}", hint="use embedded or pilot")
    return asked  # type: ignore[return-value]  # one of the two, as has just been checked


def allocation_resources(environ: Mapping[str, str], now: float) -> dict[str, Any]:
    """The pilot's resources for the Slurm job that ``environ`` is of: all its nodes, until its end.

    Args:
        environ: ``SLURM_JOB_NUM_NODES``, ``SLURM_JOB_CPUS_PER_NODE`` and, where Slurm tells, ``SLURM_JOB_END_TIME``.
        now: Unix seconds.

    Raises:
        UsageError: when it is not a job's.
    """
    try:
        nodes = int(environ["SLURM_JOB_NUM_NODES"])
        counts = [int(n) for n in re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", environ["SLURM_JOB_CPUS_PER_NODE"])]
        cores = min(counts)
    except (KeyError, ValueError):
        raise UsageError(
            "this is no Slurm job whose nodes are known (SLURM_JOB_NUM_NODES, SLURM_JOB_CPUS_PER_NODE)",
            hint="name the pilot's resource and nodes, or use the embedded engine",
        ) from None
    end = float(environ.get("SLURM_JOB_END_TIME", now + _RUNTIME_MIN * 60))
    return {
        "resource": "local.rose_hpc_allocation",
        "access_schema": "interactive",
        "runtime": max(1, int((end - now) / 60)),
        "nodes": nodes,
        "resource_config": {**_INSIDE, "cores_per_node": cores},
    }


def pilot_resources(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The pilot's resources: the allocation's inside a job, else this machine's; changed by what was asked for."""
    known: dict[str, Any] = {"runtime": _RUNTIME_MIN}
    if os.environ.get("SLURM_JOB_ID"):
        known = allocation_resources(os.environ, time.time()) | {"sandbox": str(pilot_sandbox(Path.cwd()))}
    return {**known, **{key: value for key, value in asked.items() if value is not None}}


def pilot_sandbox(*folders: Path) -> Path:
    """A folder for radical.pilot's files that all nodes see and its shell scripts can carry unquoted.

    Args:
        folders: where it may be, the likeliest first; the home folder is the last resort.

    Raises:
        UsageError: when no path will do.
    """
    from rose_hpc.execution.pilot_resources import shell_safe

    for folder in (*folders, Path.home()):
        if shell_safe(str(folder.absolute())):
            return folder.absolute() / ".rose-hpc-pilot"
    raise UsageError(f"radical.pilot cannot work in {folders[0]}", hint="start from a folder without blanks and quotes")


def make_backend(
    engine: EngineName, max_concurrent: int | None = None, resources: Mapping[str, Any] | None = None
) -> Any:
    """The backend of an engine, not yet started.

    Args:
        engine: which.
        max_concurrent: of the embedded engine; see :class:`rose_hpc.EmbeddedExecutionBackend`.
        resources: of the pilot; see :func:`pilot_resources`.
    """
    if engine == "embedded":
        from rose_hpc.execution.local import EmbeddedExecutionBackend

        return EmbeddedExecutionBackend(max_concurrent)
    from rose_hpc.execution.pilot import RadicalExecutionBackend

    return RadicalExecutionBackend(pilot_resources(resources or {}))


async def execution_backend(resources: dict[str, Any] | None = None) -> Any:
    """The pilot inside a Slurm job, the embedded engine elsewhere; ready to be given to ``WorkflowEngine.create``.

    Args:
        resources: for the pilot, as ``RadicalExecutionBackend`` takes them; inside a job they default to the
            allocation's.
    """
    return await make_backend(choose_engine(), resources=resources)
