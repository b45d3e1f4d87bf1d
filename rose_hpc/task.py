"""What a task sees of the run it is part of: :func:`current_task`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rose_hpc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from rose_hpc.experience.bank import ExperienceBank
    from rose_hpc.experience.shard import ShardWriter

_BY_HAND = (
    "to try a script by hand, set what a run would: ROSE_HPC_STAGE=collect ROSE_HPC_SEED=0 ROSE_HPC_SHARD=shard.h5 "
    "for an environment, ROSE_HPC_STAGE=update ROSE_HPC_BANK=shard.h5 ROSE_HPC_POLICY=folder ROSE_HPC_STATE=folder "
    "for an update"
)
#: set where a function runs in a thread of somebody else's process, whose environment is not ours to change
_variables: ContextVar[Mapping[str, str] | None] = ContextVar("rose_hpc_task", default=None)


@dataclass(frozen=True)
class Task:
    """Where the calling code is in a run, and the files it was given.

    Attributes:
        run: the run directory, of a population the learner's own.
        learner: which of a population this is, from 0.
        iteration: counts from 0.
        stage: ``collect``, ``update`` or ``check``.
        environment: its name; empty outside ``collect``.
        parameters: the environment's, and the learner's.
        seed: 0 <= seed < 2**31; the same whenever this iteration is repeated.
        deadline: Unix time by which the stage must have ended, if known.
        policy: update: a private copy to change in place; check: this iteration's; environments: the previous
            iteration's, None the first time.
        state: like the policy, for whatever else the update keeps.
    """

    run: Path | None
    iteration: int
    stage: str
    environment: str
    parameters: Mapping[str, Any]
    seed: int
    deadline: float | None
    policy: Path | None
    state: Path | None
    shard_path: Path | None
    bank_path: Path | None
    bank_paths: tuple[Path, ...]
    learner: int = 0

    @cached_property
    def rng(self) -> np.random.Generator:
        """A random generator made from the seed; the same one at every access."""
        import numpy as np

        return np.random.default_rng(self.seed)

    def shard(self) -> ShardWriter:
        """The writer of this attempt's shard: a context manager; it is published only if its block ends well.

        Raises:
            UsageError: in a stage that writes none.
        """
        from rose_hpc.experience.shard import ShardWriter

        if self.shard_path is None:
            raise UsageError(f"the {self.stage} stage writes no shard", hint="only environments do")
        attributes = {
            "iteration": self.iteration,
            "environment": self.environment,
            "seed": self.seed,
            "parameters": dict(self.parameters),
        }
        if self.run is not None:
            attributes["run"] = self.run.name
        return ShardWriter(self.shard_path, attributes=attributes, fsync=False)  # the supervisor syncs what it seals

    def bank(self, window: int | None = None, max_rows: int | None = None) -> ExperienceBank:
        """The merged experience of the window's iterations, seen as one without copying.

        Args:
            window: only the last ``window`` iterations; 1 is this iteration's.
            max_rows: only the newest so many rows of these.

        Raises:
            UsageError: where there is no bank.
        """
        from rose_hpc.experience.bank import ExperienceBank

        if not self.bank_paths:
            raise UsageError(
                f"the {self.stage} stage of iteration {self.iteration} has no bank",
                hint="only update and check have one, when environments wrote shards",
            )
        if window is not None and window < 1:
            raise UsageError(f"window is {window}; it must be at least 1")
        if window == 1 and self.bank_path is None:
            raise UsageError(f"iteration {self.iteration} has no bank of its own", hint="no environment wrote a shard")
        return ExperienceBank.open(self.bank_paths[-window:] if window else self.bank_paths, max_rows=max_rows)


def current_task() -> Task:
    """The task that the calling code is.

    Raises:
        UsageError: outside a run; it says how to try a script by hand.
    """
    given = _variables.get()
    variables = os.environ if given is None else given
    if not variables.get("ROSE_HPC_STAGE"):
        raise UsageError("this is not running as a task of rose_hpc (ROSE_HPC_STAGE is not set)", hint=_BY_HAND)

    def path(name: str) -> Path | None:
        return Path(variables[name]) if variables.get(name) else None

    try:
        bank = path("ROSE_HPC_BANK")
        banks = _parsed(variables, "ROSE_HPC_BANKS", []) or ([bank] if bank else [])
        deadline = variables.get("ROSE_HPC_DEADLINE")
        return Task(
            run=path("ROSE_HPC_RUN"),
            iteration=int(variables.get("ROSE_HPC_ITERATION") or 0),
            stage=variables["ROSE_HPC_STAGE"],
            environment=variables.get("ROSE_HPC_ENVIRONMENT", ""),
            parameters=_parsed(variables, "ROSE_HPC_PARAMETERS", {}),
            seed=int(variables.get("ROSE_HPC_SEED") or 0),
            deadline=float(deadline) if deadline else None,
            policy=path("ROSE_HPC_POLICY"),
            state=path("ROSE_HPC_STATE"),
            shard_path=path("ROSE_HPC_SHARD"),
            bank_path=bank,
            bank_paths=tuple(Path(entry) for entry in banks),
            learner=int(variables.get("ROSE_HPC_LEARNER") or 0),
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"a ROSE_HPC_* variable does not parse: {error}", hint=_BY_HAND) from error


def _parsed(variables: Mapping[str, str], name: str, default: Any) -> Any:
    """The JSON value of a variable, of the same kind as ``default``, which stands for it where it is not set."""
    text = variables.get(name)
    value = json.loads(text) if text else default
    if type(value) is not type(default):
        raise ValueError(f"{name} is {text!r}, not a JSON {'list' if isinstance(default, list) else 'object'}")
    return value


@contextmanager
def task_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Let :func:`current_task` answer from ``variables`` within this context (thread, asyncio task)."""
    token = _variables.set(variables)
    try:
        yield
    finally:
        _variables.reset(token)
