"""Which engine runs a workflow: the pilot inside a Slurm job, the embedded engine elsewhere, or the one asked for."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rose_hpc.errors import UsageError

if TYPE_CHECKING:
    from rose_hpc.config import Config
    from rose_hpc.slurm.site import Site

EngineName = Literal["embedded", "pilot"]


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


def config_resources(config: Config | Site) -> dict[str, Any]:
    """What ``[pilot]`` and ``[slurm]`` say of the pilot, in its own words."""
    pilot = config.pilot
    return {
        "resource": pilot.resource,
        "access_schema": pilot.access_schema,
        "runtime": None if pilot.runtime_min is None else math.ceil(pilot.runtime_min),
        "slurm": config.slurm.model_dump(exclude_defaults=True),
    }


def pilot_resources(asked: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What was asked for, and what follows from where we are.

    Without a ``resource``: the Slurm job that we are in; or where there is Slurm, one that is submitted; or this host.
    radical.pilot's own labels are passed on unchanged, with the nodes, queue, project and walltime of ``slurm``.

    Args:
        asked: as :class:`rose_hpc.RadicalExecutionBackend` takes it.
        environ: the environment to look at; None: this process's.

    Raises:
        UsageError: when this is a job whose nodes are not known.
    """
    from rose_hpc.execution import pilot_slurm

    environ = os.environ if environ is None else environ
    asked = {key: value for key, value in asked.items() if value is not None}
    in_job = bool(environ.get("SLURM_JOB_ID"))
    label = asked.get("resource") or (
        pilot_slurm.LABEL if in_job or shutil.which("sbatch", path=environ.get("PATH")) else "local.localhost"
    )
    if label == pilot_slurm.LABEL:
        return {**asked, "resource": label}
    slurm = asked.pop("slurm", {})
    known: dict[str, Any] = {"runtime": math.ceil(slurm.get("walltime_min") or pilot_slurm.UNKNOWN_RUNTIME_MIN)}
    if label.startswith("local."):
        return {**known, "resource": label, **asked}
    if in_job:
        known = pilot_slurm.inside(environ)
        del known["resource_config"]  # radical.pilot's own holds
    else:
        words = {"nodes": slurm.get("nodes", 1), "queue": slurm.get("partition"), "project": slurm.get("account")}
        known |= {key: value for key, value in words.items() if value is not None}
        known["sandbox"] = str(pilot_slurm.pilot_sandbox(Path.cwd()))
    if "cores" in asked:
        known.pop("nodes", None)
    return {**known, "resource": label, **asked}


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
        resources: for the pilot, as ``RadicalExecutionBackend`` takes them; they default to what the profile of a
            submitted program says, and inside a job to the allocation's.
    """
    engine = choose_engine()
    known = _site_resources(os.environ) if engine == "pilot" else {}
    return await make_backend(engine, resources={**known, **(resources or {})})


def _site_resources(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the site profile says that this program was submitted with; nothing where it was not."""
    from rose_hpc.rundir import RunDir
    from rose_hpc.slurm.site import load_site

    run = environ.get("ROSE_HPC_RUN")
    profile = RunDir(Path(run)).slurm / "site.toml" if run else None
    return config_resources(load_site(profile)) if profile is not None and profile.is_file() else {}
