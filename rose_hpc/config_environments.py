"""What runs in a configuration: a command or function with its resources, and the environments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from rose_hpc.commands import fill
from rose_hpc.config_types import (
    Count,
    FunctionName,
    Gigabytes,
    Grid,
    Model,
    Name,
    Parameters,
    Retries,
    Seconds,
    as_tuple,
    combined,
    fault,
)

#: A grid with more combinations is a slip of the pen.
_MOST_ENVIRONMENTS = 100_000
_ADD_COMMAND = 'add command = "..." to [environments]'


class Resources(Model):
    """What one task of a stage holds while it runs."""

    ranks: Count = 1
    """Ranks (processes) of the task."""
    cores_per_rank: Count = 1
    """CPU cores of each rank; OMP_NUM_THREADS and its kin are set to it."""
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each rank; a fraction shares one."""
    mem_gb_per_rank: Gigabytes | None = None
    """Memory of each rank, GB: as many run at once as the node has memory for; not counted if not set."""


class Task(Resources):
    """What a stage runs: a command, or a function."""

    command: str | None = None
    """What to run, e.g. "{python} update.py", in the folder of the configuration file; no shell is involved."""
    function: FunctionName | None = None
    """Instead of a command: "module:function", from the configuration file's folder; runs in a resident process."""
    timeout_s: Seconds | None = None
    """Seconds after which it is ended, counted from its start; no limit if not set."""
    max_rss_gb: Gigabytes | None = None
    """Memory, GB, above which the process of a function is replaced once it has answered; no limit if not set."""
    retries: Retries = 0
    """How often it is tried again in an iteration when it has failed."""
    retry_backoff_s: Seconds = 1.0
    """Seconds before it is tried again; each further wait is twice as long, up to 5 minutes."""

    def argv_with(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """The command as arguments, its placeholders filled in; () for a function."""
        return () if self.command is None else fill(self.command, parameters)

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Task:
        if self.command is not None and self.function is not None:
            raise fault("stands beside a command; keep one of them", "function")
        if self.max_rss_gb is not None and self.command is not None:
            raise fault("is for functions: a command ends with each attempt", "max_rss_gb")
        return self


class Stage(Task):
    """A stage that runs one command or function."""

    @model_validator(mode="after")
    def _has_one(self) -> Stage:
        if self.command is None and self.function is None:
            raise fault('has no command; add command = "..." (or function = "module:function")')
        return self


class EnvironmentConfig(Task):
    """One environment with everything it inherits written out."""

    name: Name
    """Unique in the run, without regard to case."""
    parameters: Parameters = Field(default_factory=dict)
    """Filled into the command's placeholders, handed to the task as JSON, and a function's keywords."""
    shard: bool = True
    """Whether it must leave a shard."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The command as arguments, parameters filled in; () for a function."""
        return self.argv_with(self.parameters)


class ListedEnvironment(Model):
    """One entry of ``[[environments.list]]``; what is not set comes from ``[environments]``."""

    name: Name
    """Unique in the run, without regard to case."""
    parameters: Parameters = Field(default_factory=dict)
    """Filled into the command's placeholders, handed to the task as JSON, and a function's keywords."""
    command: str | None = None
    """This environment's own command."""
    function: FunctionName | None = None
    """This environment's own function."""
    timeout_s: Seconds | None = None
    """This environment's own time limit, seconds."""
    max_rss_gb: Gigabytes | None = None
    """This environment's own limit of memory, GB."""
    retries: Retries | None = None
    """This environment's own number of retries."""
    retry_backoff_s: Seconds | None = None
    """This environment's own seconds before it is tried again."""
    shard: bool | None = None
    """Whether this environment must leave a shard."""
    ranks: Count | None = None
    """This environment's own number of ranks."""
    cores_per_rank: Count | None = None
    """This environment's own cores per rank."""
    gpus_per_rank: Annotated[float, Field(ge=0)] | None = None
    """This environment's own GPUs per rank."""
    mem_gb_per_rank: Gigabytes | None = None
    """This environment's own memory per rank, GB."""


class Environments(Task):
    """The sources of experience: one per combination of the grid, or as listed, or a single one."""

    command: str | None = None
    """What every environment runs unless it has a command of its own; parameters are placeholders in it."""
    function: FunctionName | None = None
    """Instead of a command: "module:function"; parameters are its keywords."""
    shard: bool | None = None
    """Whether each must leave a shard, or may; if not set, commands must and functions may."""
    grid: Grid | None = None
    """Parameter -> values; one environment per combination, named env_1, env_2, ..., the last key varying fastest."""
    listed: Annotated[tuple[ListedEnvironment, ...], BeforeValidator(as_tuple), Field(min_length=1)] | None = Field(
        default=None, alias="list"
    )
    """Environments one by one, instead of a grid."""

    def resolve(self) -> tuple[EnvironmentConfig, ...]:
        """The environments, in the order in which their rows stand in a bank."""
        shared = self.model_dump(exclude={"grid", "listed"}, exclude_none=True)
        if self.listed is not None:
            own = [entry.model_dump(exclude_none=True) for entry in self.listed]
        else:
            own = [{"name": f"env_{number}", "parameters": each} for number, each in enumerate(combined(self.grid), 1)]
        return tuple(EnvironmentConfig(**_inherited(shared, entry)) for entry in own)

    def table_of(self, index: int) -> tuple[str | int, ...]:
        """Where the command or function of an environment stands: in its entry of the list, or shared."""
        entry = self.listed[index] if self.listed is not None else None
        return ("list", index) if entry and (entry.command or entry.function) is not None else ()

    @model_validator(mode="after")
    def _check(self) -> Environments:
        if self.grid is not None and self.listed is not None:
            raise fault("stands beside a grid; keep one of them", "list")
        if math.prod(len(values) for values in (self.grid or {}).values()) > _MOST_ENVIRONMENTS:
            raise fault(f"has more than {_MOST_ENVIRONMENTS} combinations", "grid")
        names: dict[str, str] = {}
        nothing = self.command is None and self.function is None
        for index, entry in enumerate(self.listed or ()):
            other = names.setdefault(entry.name.casefold(), entry.name)
            if other is not entry.name:
                raise fault(
                    f"{entry.name!r} is taken by {other!r}; names differ by more than case", "list", index, "name"
                )
            if nothing and entry.command is None and entry.function is None:
                raise fault(f"environment {entry.name!r} has no command; {_ADD_COMMAND}", "list", index)
            if entry.command is not None and entry.function is not None:
                raise fault("stands beside a command; keep one of them", "list", index, "function")
        if self.listed is None and nothing:
            raise fault(f"has no command; {_ADD_COMMAND}")
        return self


def _inherited(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What an environment consists of; a command of its own replaces the shared function, and the other way round."""
    replaced = {"command": ("function", "max_rss_gb"), "function": ("command",)}
    dropped = {key for mine, others in replaced.items() if mine in own for key in others}
    whole = {**{key: value for key, value in shared.items() if key not in dropped}, **own}
    return {"shard": "function" not in whole, **whole}
