"""The configuration as frozen data: the models are the file format, and the only place where defaults live.

The text under a field is its help text. `rose_hpc.config` reads these models from TOML and writes them back.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rose_hpc.config_environments import Environments, Stage, Task
from rose_hpc.config_sweep import ListedLearner, Sweep
from rose_hpc.config_types import (
    Count,
    Gigabytes,
    Line,
    Lines,
    Minutes,
    Model,
    Name,
    Operator,
    Option,
    Seconds,
    as_path,
    as_tuple,
    fault,
)
from rose_hpc.errors import ConfigError
from rose_hpc.metrics import MODEL_REWARD, operator_for


class Check(Stage):
    """The stop criterion: the number on the last line of the command's output, compared with a threshold."""

    metric: Line = MODEL_REWARD
    """What the number is called; ROSE's metric names bring their operators."""
    operator: Operator
    """> >= < <= == (or ROSE's =); by default the metric's own, > for metrics that are not ROSE's."""
    threshold: float
    """The run has converged when ``number operator threshold`` holds."""

    @model_validator(mode="before")
    @classmethod
    def _fill_operator(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        metric = raw.get("metric", MODEL_REWARD)
        operator = raw.get("operator", operator_for(metric) if isinstance(metric, str) else ">")
        return {**raw, "operator": "==" if operator == "=" else operator}


class Loop(Model):
    """How long to go on, and how much at once."""

    max_iterations: Count | None = None
    """Iterations after which the run ends even if it has not converged; needed when there is no [check]."""
    max_concurrent: Count | None = None
    """Ranks at once, whatever they take; as many as there are cores and memory for if not set."""
    waves: bool = True
    """Whether environments may run one after another where not all fit at once; false refuses such a run."""
    local_policy_mb: Annotated[float, Field(ge=0)] | None = None
    """MB from which a policy is copied once to each node ($SLURM_TMPDIR, $TMPDIR or /tmp), where environments read it;
    0: never; 64, and only where there are several nodes, if not set."""


class Merge(Model):
    """How shards become the iteration's bank."""

    window: Count = 1
    """Iterations whose banks the update sees as one."""
    workers: Count | None = None
    """Threads that copy, on each node; chosen by the size of the shards if not set."""
    way: Literal["auto", "threads", "stream", "nodes", "mpio"] = "auto"
    """Who copies: "threads" of one node, also while shards still come ("stream"), processes on all "nodes", or MPI
    ranks through an h5py with MPI ("mpio")."""
    verify: bool = True
    """Whether shards are checked against their digests while they are copied."""
    min_environments: Count | None = None
    """With how many environments an iteration goes on when others have failed (or are late); all if not set."""
    deadline_s: Seconds | None = None
    """Seconds from the start of collecting after which it goes on with min_environments, and the others are late."""
    max_policy_lag: Annotated[int, Field(ge=0)] = 0
    """How many iterations late a shard is still taken; 0: who is late is ended, and what it did is discarded."""
    max_misses: Count = 3
    """Iterations in a row that one environment may be missing because it failed; the run stops then."""


class Retention(Model):
    """What stays on disk."""

    policies: Literal["all"] | Count = "all"
    """Every policy ("all"), or how many of the newest; the best one always stays."""
    banks: Literal["all", "window"] | Count = "window"
    """Every bank ("all"), those the next update needs ("window"), or how many of the newest."""
    shards: bool = False
    """Whether shards stay after their bank is recorded."""


class Pilot(Model):
    """RADICAL-Pilot's hold on an allocation."""

    resource: Line | None = None
    """RADICAL-Pilot's name of the machine, e.g. "local.localhost"."""
    runtime_min: Minutes | None = None
    """Minutes the pilot lives."""
    access_schema: Line | None = None
    """RADICAL-Pilot's way in, e.g. "interactive" inside a job, "batch" from a login node."""


class Slurm(Model):
    """What a job asks of Slurm; each key is the sbatch option of that name."""

    nodes: Count = 1
    """Nodes of the allocation."""
    ntasks_per_node: Count | None = None
    """Tasks per node."""
    cpus_per_task: Count | None = None
    """Cores per task."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """GPUs per node."""
    mem_gb: Gigabytes | None = None
    """Memory per node, GB."""
    walltime_min: Minutes | None = None
    """Minutes the job may take; the partition's default if not set."""
    partition: Line | None = None
    """Partition (queue)."""
    account: Line | None = None
    """Account that is charged."""
    qos: Line | None = None
    """Quality of service."""
    constraint: Line | None = None
    """Features the nodes must have."""
    reservation: Line | None = None
    """Reservation to run in."""
    exclusive: bool = False
    """Whether nodes are held alone."""
    mail_user: Line | None = None
    """Who gets mail."""
    mail_type: Lines = ()
    """Events that send mail, e.g. ["END", "FAIL"]."""
    chain: Count = 1
    """Jobs submitted ahead, each going on where the one before it ended."""
    requeue: bool = False
    """Whether Slurm may requeue the job."""
    extra: Annotated[tuple[Option, ...], BeforeValidator(as_tuple)] = ()
    """Further sbatch options, each starting with "--"."""
    modules: Lines = ()
    """Environment modules loaded in the job first."""
    venv: Line | None = None
    """Virtual environment activated in the job (its folder)."""
    conda: Line | None = None
    """Conda environment activated in the job (name or folder)."""
    setup: Line | None = None
    """A shell script sourced in the job before anything else."""

    @property
    def mem_mb(self) -> int | None:
        """Memory per node as Slurm is told it, in whole MB."""
        return None if self.mem_gb is None else math.ceil(self.mem_gb * 1024)


class Config(Model):
    """One experiment, as its file says it."""

    name: Name = "run"
    """What runs are called: runs/NAME-xxxx."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Where all seeds come from; chosen, and written down, when the run is made if not set."""
    base: Annotated[Path, BeforeValidator(as_path)]
    """Folder in which commands run; that of the configuration file, written out in a run's own copy."""
    environments: Environments
    """Where experience comes from."""
    update: Stage
    """What turns experience into the next policy."""
    check: Check | None = None
    """When to stop; without it the run ends at loop.max_iterations."""
    sweep: Sweep | None = None
    """Several learners in one run, each with parameters of its own."""
    loop: Loop = Loop()
    """Limits."""
    merge: Merge = Merge()
    """From shards to banks."""
    retention: Retention = Retention()
    """What stays on disk."""
    pilot: Pilot = Pilot()
    """RADICAL-Pilot's settings."""
    slurm: Slurm = Slurm()
    """Slurm's settings."""

    @property
    def learners(self) -> tuple[ListedLearner, ...]:
        """The learners of a sweep, by their numbers; the only one of any other run."""
        return (ListedLearner(),) if self.sweep is None else self.sweep.resolve()

    @property
    def tasks(self) -> list[tuple[tuple[str | int, ...], Task, dict[str, Any]]]:
        """Everything that runs: the table that has its command or function, itself, and its own parameters."""
        environments = enumerate(self.environments.resolve())
        found: list[tuple[tuple[str | int, ...], Task, dict[str, Any]]] = [
            (("environments", *self.environments.table_of(index)), each, each.parameters)
            for index, each in environments
        ]
        found.append((("update",), self.update, {}))
        return [*found, (("check",), self.check, {})] if self.check is not None else found

    @model_validator(mode="after")
    def _fills(self) -> Config:
        """Every placeholder of a command is a parameter, and no parameter has two meanings."""
        learners = {tuple(each.parameters): each.parameters for each in self.learners}  # a name is filled, or is not
        seen: set[tuple[str | None, tuple[str, ...]]] = set()
        for table, task, own in self.tasks:
            if (task.command, tuple(own)) in seen:
                continue
            seen.add((task.command, tuple(own)))
            for parameters in learners.values():
                if both := own.keys() & parameters.keys():
                    raise fault(f"{min(both)!r} is a parameter of the environments too; rename one of them", "sweep")
                try:
                    task.argv_with({**parameters, **own})
                except ConfigError as error:
                    raise fault(str(error), *table, "command") from None
        return self

    @model_validator(mode="after")
    def _ends(self) -> Config:
        if self.check is None and self.loop.max_iterations is None:
            raise ValueError("has neither [check] nor loop.max_iterations, so it would never end; add one of them")
        return self

    @model_validator(mode="after")
    def _can_be_patient(self) -> Config:
        merge, environments = self.merge, len(self.environments.resolve())
        if merge.min_environments is not None and merge.min_environments > environments:
            raise fault(f"is {merge.min_environments}, and there are {environments}", "merge", "min_environments")
        if merge.deadline_s is not None and merge.min_environments is None:
            raise fault("needs min_environments: how many are enough by then", "merge", "deadline_s")
        if merge.max_policy_lag and merge.deadline_s is None:
            raise fault("needs deadline_s: without a deadline nobody is late", "merge", "max_policy_lag")
        return self
