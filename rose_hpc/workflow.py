"""What a run consists of, as frozen data; a TOML file and a program's decorators fill the same :class:`Workflow`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rose_hpc.errors import UsageError
from rose_hpc.metrics import compare
from rose_hpc.named import Named
from rose_hpc.patience import Patience

if TYPE_CHECKING:
    from rose_hpc.config_models import Config

Function = Callable[..., Any]
CommandMaker = Callable[..., Awaitable[str]]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Resources:
    """What one task of a stage takes while it runs."""

    ranks: int = 1
    cores_per_rank: int = 1
    gpus_per_rank: float = 0.0
    mem_gb_per_rank: float | None = None

    @property
    def cores(self) -> int:
        """Cores of all its ranks."""
        return self.ranks * self.cores_per_rank

    @property
    def gpus(self) -> float:
        """GPUs of all its ranks."""
        return self.ranks * self.gpus_per_rank

    @property
    def mem_mb_per_rank(self) -> int:
        """Memory of a rank, whole MB; 0 where it is not said."""
        return int((self.mem_gb_per_rank or 0.0) * 1024)

    @property
    def mem_mb(self) -> int:
        """Memory of all its ranks."""
        return self.ranks * self.mem_mb_per_rank


@dataclass(frozen=True)
class Work:
    """What one stage or environment runs: exactly one of the three.

    Attributes:
        argv: a command, argument by argument.
        make_command: an async function that gives a command line (as asyncflow's executable tasks), called in the
        driver.
        function: a function, async or not, called in a rank.
        timeout_s: seconds from its start to TERM; None: no limit.
        max_rss_gb: memory above which the process that called the function is replaced; None: no limit.
        resources: what it takes.
        retries, retry_backoff_s: how often it is tried again in an iteration when it has failed, and the seconds before
            the first time; each further wait is twice as long.
    """

    argv: tuple[str, ...] = ()
    make_command: CommandMaker | None = None
    function: Function | None = None
    timeout_s: float | None = None
    resources: Resources = field(default_factory=Resources)
    max_rss_gb: float | None = None
    retries: int = 0
    retry_backoff_s: float = 1.0

    @property
    def is_function(self) -> bool:
        """Whether it is called, not executed."""
        return self.function is not None

    def __str__(self) -> str:
        """What it is, as a plan shows it: the command line, or the function with its own parameters."""
        if isinstance(self.function, Named):
            return str(self.function)
        return shlex.join(self.argv) or getattr(self.function or self.make_command, "__name__", "a function")

    async def command(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """The arguments to execute.

        Raises:
            UsageError: when the program's function gives no command line.
        """
        if self.make_command is None:
            return self.argv
        name = getattr(self.make_command, "__name__", "the task")
        try:
            line = await self.make_command(*args, **kwargs)
        except UsageError as error:
            raise UsageError(
                f"{name} is registered as a command, and giving its command line failed: {error.message}",
                hint="register a function that does the work itself with as_executable=False",
            ) from error
        if not isinstance(line, str) or not (argv := shlex.split(line)):
            raise UsageError(
                f"{name} returned {line!r}, not a command line",
                hint="return a string, or register it with as_executable=False",
            )
        return tuple(argv)


@dataclass(frozen=True)
class Environment:
    """One named, parameterised source of experience.

    Attributes:
        shard: whether it must leave a shard; None: it may (functions).
    """

    name: str
    work: Work
    parameters: Mapping[str, Any] = field(default_factory=dict)
    shard: bool | None = True

    @cached_property
    def variables(self) -> Mapping[str, str]:
        """What its rank finds in its environment, in every iteration."""
        return {"ROSE_HPC_ENVIRONMENT": self.name, "ROSE_HPC_PARAMETERS": json.dumps(dict(self.parameters))}


@dataclass(frozen=True)
class Criterion:
    """When to stop: the number that ``work`` gives, compared with a threshold."""

    work: Work
    metric: str
    operator: str
    threshold: float

    def met(self, value: float) -> bool:
        """Whether the run has converged."""
        return compare(value, self.operator, self.threshold)


@dataclass(frozen=True)
class Retention:
    """What stays on disk; see ``[retention]``."""

    policies: Literal["all"] | int = "all"
    banks: Literal["all", "window"] | int = "window"
    shards: bool = False


@dataclass(frozen=True)
class Workflow:
    """Everything the loop needs to know.

    Attributes:
        cwd: the folder commands run in.
        window: iterations whose banks the update sees as one.
        verify, workers, way: how shards are merged.
        waves: whether environments may run one after another where not all fit at once.
        local_policy_mb: size from which a policy is copied to each node; 0: never; None: on several nodes, from 64 on.
        patience: with how few environments an iteration goes on.
        parameters: of this learner, for every task (environments have them beside their own).
    """

    name: str
    cwd: Path
    environments: tuple[Environment, ...]
    update: Work
    criterion: Criterion | None = None
    max_iterations: int | None = None
    window: int = 1
    verify: bool = True
    workers: int | None = None
    way: str = "auto"
    max_concurrent: int | None = None
    waves: bool = True
    local_policy_mb: float | None = None
    retention: Retention = field(default_factory=Retention)
    patience: Patience = field(default_factory=Patience)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.environments:
            raise UsageError("there is no environment", hint="register one with @learner.environment_task(name=...)")
        seen: dict[str, str] = {}
        for environment in self.environments:
            check_name(environment.name)
            if (other := seen.get(environment.name.casefold())) is not None:
                raise UsageError(
                    f"two environments are named {other!r} and {environment.name!r}", hint="make each unique"
                )
            seen[environment.name.casefold()] = environment.name
        self.patience.check(len(self.environments))
        if self.criterion is None and not self.max_iterations:
            raise UsageError("this would never end", hint="add a stop criterion, or give max_iter")

    @property
    def works(self) -> dict[str, Work]:
        """Every work by what it is called: environments by name, then ``update`` and ``check``."""
        works = {f"environment {e.name}": e.work for e in self.environments} | {"update": self.update}
        return works | ({"check": self.criterion.work} if self.criterion else {})

    @property
    def modules(self) -> list[str]:
        """Files, from the working folder, of the functions that a configuration names."""
        functions = (work.function for work in self.works.values())
        return list(dict.fromkeys(function.file for function in functions if isinstance(function, Named)))


def check_name(name: str) -> None:
    """Refuse a name that could not be a file's, or an environment's.

    Raises:
        UsageError: when it does not match the contract.
    """
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise UsageError(f"the name {name!r} must be 1 to 64 of A-Z a-z 0-9 _ . - (and not '.' or '..')")


def from_config(config: Config, learner: Mapping[str, Any] | None = None) -> Workflow:
    """The workflow of a configuration file.

    Args:
        config: the configuration.
        learner: the parameters of one learner of its sweep; None: of the first.
    """
    parameters = dict(config.learners[0].parameters if learner is None else learner)

    def work(task: Any, own: Mapping[str, Any]) -> Work:
        named = Named(task.function, str(config.base), own, parameters) if task.function else None
        return Work(
            argv=task.argv_with({**parameters, **own}),
            function=named,
            timeout_s=task.timeout_s,
            resources=Resources(task.ranks, task.cores_per_rank, task.gpus_per_rank, task.mem_gb_per_rank),
            max_rss_gb=task.max_rss_gb,
            retries=task.retries,
            retry_backoff_s=task.retry_backoff_s,
        )

    check, merge = config.check, config.merge
    return Workflow(
        name=config.name,
        cwd=config.base,
        environments=tuple(
            Environment(e.name, work(e, e.parameters), {**parameters, **e.parameters}, shard=e.shard or None)
            for e in config.environments.resolve()
        ),
        update=work(config.update, {}),
        criterion=None if check is None else Criterion(work(check, {}), check.metric, check.operator, check.threshold),
        max_iterations=config.loop.max_iterations,
        window=config.merge.window,
        verify=config.merge.verify,
        workers=config.merge.workers,
        way=config.merge.way,
        max_concurrent=config.loop.max_concurrent,
        waves=config.loop.waves,
        local_policy_mb=config.loop.local_policy_mb,
        retention=Retention(config.retention.policies, config.retention.banks, config.retention.shards),
        patience=Patience(merge.min_environments, merge.deadline_s, merge.max_policy_lag, merge.max_misses),
        parameters=parameters,
    )
