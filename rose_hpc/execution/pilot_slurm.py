"""Slurm as radical.pilot gets it described: the allocation that we are in, or one that it shall acquire.

*Inside* a job the pilot's agent is forked beside the driver. *Attached*, from a login node, the pilot is a job that
radical.pilot submits; what it has no words for (QOS, memory, GPUs, ``--no-kill``) reaches sbatch as ``SBATCH_*``
variables, which override the options in radical.pilot's script.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rose_hpc.errors import UsageError
from rose_hpc.execution.pilot_resources import shell_safe
from rose_hpc.machine import job_memory_mb
from rose_hpc.slurm.allocation import job_end

if TYPE_CHECKING:
    from rose_hpc.config_models import Slurm

#: the pilot's resource that is "the Slurm of this machine": the job we are in, or one to be submitted
LABEL = "local.slurm"
#: of an allocation whose end nobody tells, the minutes the pilot asks for
UNKNOWN_RUNTIME_MIN = 24 * 60
_DESCRIPTION = {
    "default_schema": "batch",
    "schemas": {
        "interactive": {"job_manager_endpoint": "fork://localhost", "filesystem_endpoint": "file://localhost"},
        "batch": {"job_manager_endpoint": "slurm://localhost", "filesystem_endpoint": "file://localhost"},
    },
    "resource_manager": "SLURM",
    "agent_config": "default",
    "agent_scheduler": "CONTINUOUS",
    "agent_spawner": "POPEN",
    "rp_version": "installed",
    "virtenv_mode": "local",
    "python_dist": "default",
}
#: keys of [slurm] that a job of radical.pilot's cannot be given
_NOT_ATTACHED = ("extra", "mail_user", "mail_type")


def slurm_resources(asked: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The resources for :data:`LABEL`: of the job that ``environ`` is of, else of one to be submitted.

    Args:
        asked: what the user says; its ``slurm`` has keys of the configuration's ``[slurm]``.
        environ: the environment to look at.

    Raises:
        UsageError: values that make no sense, or Slurm does not say what is needed.
    """
    rest = {key: value for key, value in asked.items() if value is not None and key not in ("slurm", "resource_config")}
    known = inside(environ) if environ.get("SLURM_JOB_ID") else attached(asked, _slurm(asked))
    ours = in_login_shell(environ.get("PATH", os.defpath))
    config = {**ours, **known.pop("resource_config"), **(asked.get("resource_config") or {})}
    return {**known, **rest, "resource": LABEL, "resource_config": config}


def in_login_shell(path: str) -> dict[str, Any]:
    """What radical.pilot's agent must be told, since it starts in a login shell.

    Its PATH need not lead to the srun of ``path``; and Slurm writes the names of the job's nodes out, because
    radical.utils makes ``n09`` of the ninth in ``n[1-32]``. Without scontrol it reads Slurm's own short form.
    """
    names = f'PATH={shlex.quote(path)}:"$PATH" scontrol show hostnames | paste -sd, -'
    srun = {"pre_exec_cached": [f"export PATH={shlex.quote(path)}"]}
    return {
        "launch_methods": {"order": ["SRUN"], "SRUN": srun},
        "pre_bootstrap_0": [shlex.quote(f"export SLURM_NODELIST=$({names})")],  # it is an argument in a shell's line
    }


def inside(environ: Mapping[str, str]) -> dict[str, Any]:
    """All nodes of the job that ``environ`` is of, until its end.

    Raises:
        UsageError: when its nodes are not known.
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
    end, memory_mb = job_end(environ), job_memory_mb(environ, cores)
    return {
        # A minute more than is left: it is Slurm that ends the job, and the pilot with it
        "runtime": UNKNOWN_RUNTIME_MIN if end is None else max(1, math.ceil((end - time.time()) / 60) + 1),
        "deadline": end,
        "access_schema": "interactive",
        "nodes": nodes,
        "memory_mb": None if math.isinf(memory_mb) else int(memory_mb),
        "sandbox": str(pilot_sandbox(Path.cwd())),
        "resource_config": {**_DESCRIPTION, "cores_per_node": cores},
    }


def attached(asked: Mapping[str, Any], slurm: Slurm) -> dict[str, Any]:
    """A job that radical.pilot shall submit.

    Raises:
        UsageError: it cannot be told what ``slurm`` says, or nobody knows the nodes' cores or the walltime.
    """
    taken = [key for key in _NOT_ATTACHED if getattr(slurm, key)]
    if taken:
        raise UsageError(f"a pilot's own job cannot be given slurm.{taken[0]}", hint="use `rose-hpc submit` instead")
    if asked.get("runtime") is None and slurm.walltime_min is None:
        raise UsageError("the walltime of the pilot's job is not given", hint="add slurm.walltime_min")
    cores = (asked.get("resource_config") or {}).get("cores_per_node") or cores_per_node(slurm)
    name = f"rose-hpc-{uuid.uuid4().hex[:12]}"
    return {
        "runtime": math.ceil(slurm.walltime_min or 0),
        "access_schema": "batch",
        "nodes": slurm.nodes,
        "memory_mb": slurm.mem_mb,
        "queue": slurm.partition,
        "project": slurm.account,
        "sandbox": str(pilot_sandbox(Path.cwd())),
        "submit_environment": sbatch_variables(slurm, name),
        "release": ("scancel", f"--name={name}"),
        "resource_config": {**_DESCRIPTION, "cores_per_node": cores},
    }


def sbatch_variables(slurm: Slurm, name: str) -> dict[str, str]:
    """What sbatch reads from its environment; partition, account, nodes and time are in radical.pilot's own script."""
    given = {
        "JOB_NAME": name,  # by which it is found and cancelled, whatever becomes of radical.pilot
        "NO_KILL": "set",
        "NO_REQUEUE": "set",  # nobody would be there for the second time
        "QOS": slurm.qos,
        "CONSTRAINT": slurm.constraint,
        "RESERVATION": slurm.reservation,
        "EXCLUSIVE": "exclusive" if slurm.exclusive else None,
        "GPUS_PER_NODE": slurm.gpus_per_node,
        "MEM_PER_NODE": None if slurm.mem_mb is None else f"{slurm.mem_mb}M",
    }
    return {f"SBATCH_{key}": str(value) for key, value in given.items() if value is not None}


def cores_per_node(slurm: Slurm) -> int:
    """Cores of each node: as ``[slurm]`` says, else of the partition's smallest node, as sinfo says.

    Raises:
        UsageError: neither says.
    """
    from rose_hpc.slurm.commands import call

    if slurm.cpus_per_task is not None:
        return slurm.cpus_per_task * (slurm.ntasks_per_node or 1)
    partition = [f"--partition={slurm.partition}"] if slurm.partition else []
    answer = call(["sinfo", "--noheader", "--Node", "--format=%c %P", *partition])
    rows = [line.split() for line in answer.stdout.splitlines() if line.split()]
    default = [int(cores) for cores, name in rows if name.endswith("*")]  # without a partition, the default one's nodes
    counts = default if default and not partition else [int(cores) for cores, _ in rows]
    if not counts:
        raise UsageError(f"Slurm does not say how many cores its nodes have: {answer.words}", hint="give cpus_per_task")
    return min(counts)


def pilot_sandbox(*folders: Path) -> Path:
    """A folder for radical.pilot's files that all nodes see and its shell scripts can carry unquoted.

    Args:
        folders: where it may be, the likeliest first; the home folder is the last resort.

    Raises:
        UsageError: when no path will do.
    """
    for folder in (*folders, Path.home()):
        if shell_safe(str(folder.absolute())):
            return folder.absolute() / ".rose-hpc-pilot"
    raise UsageError(f"radical.pilot cannot work in {folders[0]}", hint="start from a folder without blanks and quotes")


def _slurm(asked: Mapping[str, Any]) -> Slurm:
    """``[slurm]``, with what the pilot's own words say."""
    from pydantic import ValidationError

    from rose_hpc.config_models import Slurm

    words = {"nodes": asked.get("nodes"), "partition": asked.get("queue"), "account": asked.get("project")}
    given = {key: value for key, value in words.items() if value is not None}
    try:
        return Slurm.model_validate({**(asked.get("slurm") or {}), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"slurm.{'.'.join(map(str, first['loc']))} of the pilot: {first['msg']}") from None
