"""What a pilot will be: pure functions from what was asked for to a frozen plan.

Nothing here imports radical.pilot or acts on anything; :mod:`rose_hpc.execution.pilot` acts on it.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rose_hpc.errors import UsageError
from rose_hpc.slurm.commands import clean_environment

_SHELL_SAFE = re.compile(r"[A-Za-z0-9_./+-]+")
#: what a shell looks at within double quotes; and radical.pilot's scripts read variables by line
_UNQUOTED = re.compile(r"[$`\\\n]")


@dataclass(frozen=True)
class PilotPlan:
    """A pilot as it will be asked for.

    Attributes:
        resource: radical.pilot's label, ``site.machine``.
        runtime_min: minutes the pilot lives.
        cores, gpus, nodes: its size; 0: not said (then the others say it).
        memory_mb: what its job has on each node; 0: not said.
        queue, project, access_schema, job_name: as radical.pilot means them; empty: the resource's default.
        sandbox: the folder for everything radical.pilot writes; None: a new temporary one.
        start_timeout_s: seconds until the pilot must be active, waiting in a queue included.
        resource_config: radical.pilot's description of the resource, laid over what it ships for that label.
        forks: the tasks are forked on this host, with no launcher such as srun between.
        deadline: when it ends (Unix seconds), where that is not ``runtime_min`` from its start.
        submit_environment: variables for the commands of the batch system, in place of the user's own; empty: the pilot
            is not submitted.
        release: a command that gives the pilot's allocation back when it is over, in whatever way; empty: none.
    """

    resource: str
    runtime_min: int
    cores: int = 0
    gpus: int = 0
    nodes: int = 0
    memory_mb: int = 0
    queue: str = ""
    project: str = ""
    access_schema: str = ""
    job_name: str = ""
    sandbox: Path | None = None
    start_timeout_s: float = 300.0
    resource_config: Mapping[str, Any] = field(default_factory=dict)
    forks: bool = True
    deadline: float | None = None
    submit_environment: Mapping[str, str] = field(default_factory=dict)
    release: tuple[str, ...] = ()


#: key of the resources -> type it must have
_KEYS: dict[str, type | tuple[type, ...]] = {
    "resource": str,
    "runtime": int,
    "cores": int,
    "gpus": int,
    "nodes": int,
    "memory_mb": int,
    "queue": str,
    "project": str,
    "access_schema": str,
    "job_name": str,
    "sandbox": (str, os.PathLike),
    "start_timeout_s": (int, float),
    "resource_config": Mapping,
    "deadline": float,
    "submit_environment": Mapping,
    "release": tuple,
}
_LOCAL_START_TIMEOUT_S = 300.0
_QUEUED_START_TIMEOUT_S = 24 * 3600.0


def plan_pilot(resources: Mapping[str, Any], *, host_cores: int, folder: Path) -> PilotPlan:
    """Return the plan for ``resources``, e.g. ``{'runtime': 30, 'resource': 'local.localhost'}``.

    Args:
        resources: ``runtime`` (whole minutes) is required; ``resource`` defaults to this machine. The rest is
            optional: ``cores, gpus, nodes, memory_mb, queue, project, access_schema, job_name, sandbox,
            start_timeout_s, resource_config``.
        host_cores: the cores this process may use: what a pilot on this machine gets if it names none.
        folder: where a pilot on other machines keeps its sandbox if it names none; all nodes must see it.

    Raises:
        UsageError: a key that is unknown, missing, or has a value that makes no sense.
    """
    _check_keys(resources)
    label = str(resources.get("resource", "local.localhost"))
    if "." not in label.strip("."):
        raise UsageError(f"pilot resource {label!r} is not a label 'site.machine'", hint="e.g. 'local.localhost'")
    config = dict(resources.get("resource_config") or {})
    forks = config.get("resource_manager", "FORK" if label.startswith("local.") else "") == "FORK"
    cores, nodes = _count(resources, "cores"), _count(resources, "nodes")
    if cores and nodes:
        raise UsageError("pilot resources name both 'cores' and 'nodes'", hint="name one of them")
    if not cores and not nodes:
        if not forks:
            raise UsageError(f"the size of the pilot on {label} is not given", hint="add 'nodes' or 'cores'")
        cores = host_cores
    default_timeout_s = _LOCAL_START_TIMEOUT_S if forks else _QUEUED_START_TIMEOUT_S
    return PilotPlan(
        resource=label,
        runtime_min=_runtime_min(resources),
        cores=cores,
        gpus=_count(resources, "gpus"),
        nodes=nodes,
        memory_mb=_count(resources, "memory_mb"),
        queue=str(resources.get("queue") or ""),
        project=str(resources.get("project") or ""),
        access_schema=str(resources.get("access_schema") or ""),
        job_name=str(resources.get("job_name") or ""),
        sandbox=_sandbox(resources, forks, folder),
        start_timeout_s=_positive(resources, "start_timeout_s", default_timeout_s),
        resource_config=config,
        forks=forks,
        deadline=resources.get("deadline"),
        submit_environment=dict(resources.get("submit_environment") or {}),
        release=tuple(resources.get("release") or ()),
    )


def _check_keys(resources: Mapping[str, Any]) -> None:
    for key, value in resources.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_KEYS)}"
            raise UsageError(f"unknown key {key!r} in the pilot's resources", hint=hint)
        if value is not None and (not isinstance(value, _KEYS[key]) or isinstance(value, bool)):
            raise UsageError(f"pilot resource {key!r} has the value {value!r}, of the wrong type")


def _count(resources: Mapping[str, Any], key: str) -> int:
    value = resources.get(key)
    if value is None:
        return 0
    if value < 0 or (value == 0 and key != "gpus"):
        raise UsageError(f"pilot resource {key!r} is {value}", hint="it must be positive")
    return int(value)


def _positive(resources: Mapping[str, Any], key: str, default: float) -> float:
    value = float(resources.get(key) or default)
    if not 0 < value < float("inf"):
        raise UsageError(f"pilot resource {key!r} is {value}", hint="it must be positive and finite")
    return value


def _runtime_min(resources: Mapping[str, Any]) -> int:
    if resources.get("runtime") is None:
        raise UsageError("the pilot's 'runtime' is missing", hint="add the minutes it shall live, e.g. 'runtime': 30")
    return _count(resources, "runtime")


def shell_safe(text: str) -> bool:
    """Return whether radical.pilot's shell scripts can carry ``text`` unquoted."""
    return _SHELL_SAFE.fullmatch(text) is not None


def _sandbox(resources: Mapping[str, Any], forks: bool, folder: Path) -> Path | None:
    given = resources.get("sandbox")
    if given is None and forks:
        return None
    path = Path(given).expanduser().absolute() if given is not None else folder / ".rose-hpc-pilot"
    if not shell_safe(str(path)):
        raise UsageError(
            f"radical.pilot cannot work in {str(path)!r}: the path has characters its scripts do not quote",
            hint="give 'sandbox' a folder named with letters, digits and _./+- only",
        )
    return path


def _scripts() -> Path:
    """Return the folder of radical.pilot's programs; it need not be this interpreter's."""
    files = importlib.metadata.files("radical.pilot") or ()
    found = [Path(str(file.locate())) for file in files if file.name == "radical-pilot-bridge"]
    return Path(os.path.normpath(found[0])).parent if found else Path(sys.executable).parent


def not_for_scripts(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that radical.pilot's scripts cannot pass on: they would execute what is in them, or fail at it.

    GNU make's own is one, where variables are given on its command line. Functions of bash are for a shell.
    """
    return {k: v for k, v in environ.items() if _UNQUOTED.search(v) and not k.startswith("BASH_FUNC_")}


def host_environment(plan: PilotPlan, sandbox: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment radical.pilot's own processes run in: all they write lands in ``sandbox``."""
    scripts = _scripts()
    changed = {
        "HOME": str(sandbox / "home"),  # PSI/J keeps its scripts in ~/.psij, with no other setting
        "TMPDIR": str(sandbox / "tmp"),  # agent configurations are left behind there
        "PWD": str(sandbox),
        "RADICAL_BASE": str(sandbox),
        "RADICAL_CONFIG_USER_DIR": str(sandbox / "config"),
        # radical.pilot starts its parts by name: they must be the ones installed with it, activated or not
        "PATH": f"{scripts}{os.pathsep}{environ.get('PATH', os.defpath)}",
    }
    if (scripts.parent / "pyvenv.cfg").exists():
        changed["VIRTUAL_ENV"] = str(scripts.parent)
    defaults = {"RADICAL_DEFAULT_PROFILE": "FALSE", "RADICAL_DEFAULT_REPORT": "FALSE"}
    if plan.submit_environment:
        environ = {**clean_environment(environ), **plan.submit_environment}
    around = not_for_scripts(environ)
    environ = {name: value for name, value in environ.items() if name not in around}
    if plan.forks:
        defaults["RADICAL_DEFAULT_IFACE"] = "lo"  # its bridges have no authentication: not for the network to see
    return {**defaults, **environ, **changed}
