"""Pure functions from (run, workflow, where we stand) to attempts: everything a task is given is decided here, once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.merging import Way
from rose_hpc.progress import Progress
from rose_hpc.rundir import RunDir, log_name
from rose_hpc.seeds import derive_seed
from rose_hpc.workflow import Environment, Work, Workflow

#: where there are several nodes: with less, a copy costs more than it saves
_LOCAL_POLICY_MB = 64


@dataclass(frozen=True)
class Place:
    """Where an attempt stands, and what it may write: scratch names that no other attempt has."""

    run: RunDir
    seed: int
    learner: int
    iteration: int
    stage: str
    environment: str
    epoch: int
    number: int
    deadline: float | None = None  # when it must have ended (Unix seconds), if that is known
    avoid: tuple[str, ...] = ()  # nodes where it failed before

    @property
    def id(self) -> str:
        """Unique within the run, for ever, and among the learners of a program; safe as a file name."""
        learner = f"learner-{self.learner}-" if self.learner else ""
        environment = f"{self.environment}-" if self.environment else ""
        return f"{learner}{self.iteration:04d}-{self.stage}-{environment}{self.epoch}.{self.number}"

    @property
    def shard(self) -> str:
        """Where an environment writes."""
        return f"{self.run.scratch}/{self.id}.h5"  # a Path would cost more than all else here: there are thousands

    @property
    def policy(self) -> Path:
        """The update's private copy."""
        return self.run.scratch / f"{self.id}.policy"

    @property
    def state(self) -> Path:
        """The update's private copy."""
        return self.run.scratch / f"{self.id}.state"

    @property
    def log(self) -> str:
        """Where the output goes."""
        return f"{self.run.logs}/{log_name(self.iteration, self.stage, self.environment)}"

    def variables(self) -> dict[str, str]:
        """What every task finds in its environment."""
        seed = derive_seed(self.seed, self.learner, self.iteration, self.stage, self.environment)
        return {
            "ROSE_HPC_RUN": str(self.run.path),
            "ROSE_HPC_ITERATION": str(self.iteration),
            "ROSE_HPC_STAGE": self.stage,
            "ROSE_HPC_SEED": str(seed),
            **({"ROSE_HPC_LEARNER": str(self.learner)} if self.run.within else {}),
            **({"ROSE_HPC_DEADLINE": f"{self.deadline:.3f}"} if self.deadline else {}),
        }


def policy_to_copy(workflow: Workflow, progress: Progress, iteration: int, nodes: int) -> Mapping[str, Any] | None:
    """What is known of the policy that environments of ``iteration`` have, if each node is to copy it; else None."""
    least_mb = workflow.local_policy_mb
    if least_mb is None:
        least_mb = _LOCAL_POLICY_MB if nodes > 1 else 0
    policy = progress.updates.get(iteration - 1, {}).get("policy")
    if not nodes or not least_mb or policy is None or policy["bytes"] < least_mb * 1e6:
        return None
    return {"digest": policy["digest"], "bytes": policy["bytes"]}


def collect(
    place: Place,
    environment: Environment,
    cwd: Path,
    argv: Sequence[str],
    *,
    brief: bool = False,
    policy: Mapping[str, Any] | None = None,
) -> Attempt:
    """One environment's attempt at its shard.

    Args:
        place, environment, cwd, argv: whose, where, and what is executed.
        brief: it is known to take hardly longer than a message.
        policy: as of :func:`policy_to_copy`.
    """
    before = _committed(place.run, place.iteration - 1) if place.iteration > 0 else {}
    variables = {**place.variables(), **environment.variables, **before, "ROSE_HPC_SHARD": place.shard}
    attempt = _attempt(place, environment.work, cwd, argv, variables, seal=bool(environment.shard), brief=brief)
    # the ranks of one attempt may be on several nodes
    return attempt if policy is None or attempt.ranks > 1 else replace(attempt, policy=policy)


def merge(place: Place, workflow: Workflow, shards: Mapping[Path, str], way: Way, *, fsync: bool = True) -> Attempt:
    """The reduction of an iteration's shards (with the digests of their records), in the configuration's order."""
    arguments = {
        "phase": "whole",
        "way": way.name,
        "shards": {str(path): digest for path, digest in shards.items()},
        "bank": place.shard,
        "verify": workflow.verify,
        "fsync": fsync,
        "workers": way.threads,
        "attributes": {"run": place.run.name, "iteration": place.iteration},
    }
    return Attempt(id=place.id, kind="merge", merge=arguments, log=place.log, cores=way.cores)


def update(place: Place, workflow: Workflow, progress: Progress, argv: Sequence[str]) -> Attempt:
    """The update: private copies of policy and state, and the window's banks."""
    variables = place.variables() | _banks(place, workflow, progress)
    variables |= {"ROSE_HPC_POLICY": str(place.policy), "ROSE_HPC_STATE": str(place.state)}
    variables |= _parameters(workflow)
    return _attempt(place, workflow.update, workflow.cwd, argv, variables)


def check(place: Place, workflow: Workflow, work: Work, progress: Progress, argv: Sequence[str]) -> Attempt:
    """The check: this iteration's policy, read-only, and the window's banks."""
    variables = place.variables() | _banks(place, workflow, progress)
    variables |= _committed(place.run, place.iteration) | _parameters(workflow)
    return _attempt(place, work, workflow.cwd, argv, variables)


@lru_cache(maxsize=16)  # of an iteration's thousand environments, each would make these paths again
def _committed(run: RunDir, iteration: int) -> dict[str, str]:
    """Where what an iteration's update left is."""
    return {"ROSE_HPC_POLICY": str(run.policy(iteration)), "ROSE_HPC_STATE": str(run.state(iteration))}


def _parameters(workflow: Workflow) -> dict[str, str]:
    """The learner's, where it has any; environments have them beside their own."""
    return {"ROSE_HPC_PARAMETERS": json.dumps(dict(workflow.parameters))} if workflow.parameters else {}


def window(workflow: Workflow, progress: Progress, iteration: int) -> list[int]:
    """The iterations whose banks the update of ``iteration`` sees, oldest first; those without a bank are left out."""
    first = max(0, iteration - workflow.window + 1)
    return [k for k in range(first, iteration + 1) if progress.has_bank(k)]


def _banks(place: Place, workflow: Workflow, progress: Progress) -> dict[str, str]:
    banks = [str(place.run.bank(k)) for k in window(workflow, progress, place.iteration)]
    variables = {"ROSE_HPC_BANKS": json.dumps(banks)}
    if progress.has_bank(place.iteration):
        variables["ROSE_HPC_BANK"] = banks[-1]
    return variables


def _attempt(
    place: Place,
    work: Work,
    cwd: Path,
    argv: Sequence[str],
    variables: Mapping[str, str],
    *,
    seal: bool | None = None,
    brief: bool = False,
) -> Attempt:
    return Attempt(
        id=place.id,
        kind="function" if work.is_function else "command",
        argv=tuple(argv),
        cwd=str(cwd),
        env=variables,
        log=place.log,
        timeout_s=work.timeout_s,
        brief=brief,
        max_rss_gb=work.max_rss_gb,
        avoid=place.avoid,
        cores=work.resources.cores,
        ranks=work.resources.ranks,
        gpus=work.resources.gpus,
        memory_mb=work.resources.mem_mb,
        seal=seal,
    )
