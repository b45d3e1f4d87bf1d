"""What a program sees after every iteration, and the arguments it gives its tasks: ROSE's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from rose_hpc.errors import UsageError


@dataclass
class IterationState:
    """What is known once an iteration is checked.

    Attributes:
        iteration: counts from 0.
        metric_name, metric_value, metric_threshold: the criterion; None without one.
        metric_history: all values so far, this one last.
        should_stop: whether the criterion is met.
        current_config: the configuration the iteration ran with.
        learner_id: of a population's learner.
        state: what tasks returned as dicts, merged; its keys are attributes too.
    """

    iteration: int
    metric_name: str | None = None
    metric_value: float | None = None
    metric_threshold: float | None = None
    metric_history: list[float] = field(default_factory=list)
    should_stop: bool = False
    current_config: LearnerConfig | None = None
    learner_id: int | str | None = None
    state: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__.get("state", {})
        if name in state:
            return state[name]
        # ROSE answers None here; a misspelt name should not look like a missing value
        raise AttributeError(f"no task returned {name!r}; there is: {', '.join(state) or 'nothing'}")

    def get(self, key: str, default: Any = None) -> Any:
        """A value that a task returned, or ``default``."""
        return self.state.get(key, default)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the metric, and everything in ``state``."""
        names = (
            "iteration",
            "metric_name",
            "metric_value",
            "metric_threshold",
            "metric_history",
            "should_stop",
            "learner_id",
        )
        return {**{name: getattr(self, name) for name in names}, **self.state}


class TaskConfig(BaseModel):
    """Arguments for one task: positional ones come before the values the loop passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}


class LearnerConfig(BaseModel):
    """Arguments per task, the same for every iteration or by iteration (-1: all others)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    environment: TaskConfig | dict[int, TaskConfig] | None = None
    update: TaskConfig | dict[int, TaskConfig] | None = None
    criterion: TaskConfig | dict[int, TaskConfig] | None = None

    def get_task_config(self, task_name: str, iteration: int) -> TaskConfig | None:
        """What ``environment``, ``update`` or ``criterion`` gets in ``iteration``; None: nothing of its own.

        Raises:
            UsageError: for any other name.
        """
        check_task(task_name)
        config = getattr(self, task_name)
        return config.get(iteration, config.get(-1)) if isinstance(config, dict) else config


def check_task(name: str) -> None:
    """Refuse a name that is no task's.

    Raises:
        UsageError: it names those there are.
    """
    if name not in LearnerConfig.model_fields:
        raise UsageError(f"no task is called {name!r}", hint=f"known: {', '.join(LearnerConfig.model_fields)}")
