"""What runs in a configuration: a command with its resources, and the environments with what they inherit."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rose_hpc.commands import fill
from rose_hpc.config_types import Count, Gigabytes, Grid, Model, Name, Parameters, Seconds, as_tuple, fault
from rose_hpc.errors import ConfigError

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
    """Memory of each rank, GB; whatever the node gives if not set."""


class Stage(Resources):
    """A stage that runs one command."""

    command: str
    """What to run, e.g. "{python} update.py", in the folder of the configuration file; no shell is involved."""
    timeout_s: Seconds | None = None
    """Seconds after which the command is ended, counted from its start; no limit if not set."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The command as arguments."""
        return fill(self.command, {})

    @field_validator("command")
    @classmethod
    def _fills(cls, command: str) -> str:
        fill(command, {})
        return command


class EnvironmentConfig(Resources):
    """One environment with everything it inherits written out."""

    name: Name
    """Unique in the run, without regard to case."""
    parameters: Parameters = Field(default_factory=dict)
    """Filled into the command's placeholders, and handed to the task as JSON."""
    command: str
    """As in `Stage`, with the parameters as placeholders."""
    timeout_s: Seconds | None = None
    """As in `Stage`."""
    shard: bool = True
    """Whether the command must leave a shard."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The command as arguments, parameters filled in."""
        return fill(self.command, self.parameters)


class ListedEnvironment(Model):
    """One entry of ``[[environments.list]]``; what is not set comes from ``[environments]``."""

    name: Name
    """Unique in the run, without regard to case."""
    parameters: Parameters = Field(default_factory=dict)
    """Filled into the command's placeholders, and handed to the task as JSON."""
    command: str | None = None
    """This environment's own command."""
    timeout_s: Seconds | None = None
    """This environment's own time limit, seconds."""
    shard: bool | None = None
    """Whether this environment's command must leave a shard."""
    ranks: Count | None = None
    """This environment's own number of ranks."""
    cores_per_rank: Count | None = None
    """This environment's own cores per rank."""
    gpus_per_rank: Annotated[float, Field(ge=0)] | None = None
    """This environment's own GPUs per rank."""
    mem_gb_per_rank: Gigabytes | None = None
    """This environment's own memory per rank, GB."""


class Environments(Resources):
    """The sources of experience: one per combination of the grid, or as listed, or a single one."""

    command: str | None = None
    """What every environment runs unless it has a command of its own; parameters are placeholders in it."""
    timeout_s: Seconds | None = None
    """Seconds after which an environment is ended, counted from its start; no limit if not set."""
    shard: bool = True
    """Whether each command must leave a shard."""
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
            own = [{"name": f"env_{number}", "parameters": each} for number, each in enumerate(self._combinations(), 1)]
        return tuple(EnvironmentConfig(**{**shared, **entry}) for entry in own)

    def _combinations(self) -> list[dict[str, Any]]:
        grid = self.grid or {}
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    @model_validator(mode="after")
    def _check(self) -> Environments:
        if self.grid is not None and self.listed is not None:
            raise fault("stands beside a grid; keep one of them", "list")
        if math.prod(len(values) for values in (self.grid or {}).values()) > _MOST_ENVIRONMENTS:
            raise fault(f"has more than {_MOST_ENVIRONMENTS} combinations", "grid")
        names: dict[str, str] = {}
        for index, entry in enumerate(self.listed or ()):
            other = names.setdefault(entry.name.casefold(), entry.name)
            if other is not entry.name:
                raise fault(
                    f"{entry.name!r} is taken by {other!r}; names differ by more than case", "list", index, "name"
                )
            if entry.command is None and self.command is None:
                raise fault(f"environment {entry.name!r} has no command; {_ADD_COMMAND}", "list", index)
        if self.listed is None and self.command is None:
            raise fault(f"has no command; {_ADD_COMMAND}")
        self._check_commands()
        return self

    def _check_commands(self) -> None:
        for index, environment in enumerate(self.resolve()):
            own = self.listed is not None and self.listed[index].command is not None
            try:
                fill(environment.command, environment.parameters)
            except ConfigError as error:
                raise fault(str(error), *(("list", index) if own else ()), "command") from None
