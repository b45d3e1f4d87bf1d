"""Several learners in one run: what each has of its own."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from rose_hpc.config_types import Count, Grid, Line, Model, Parameters, as_tuple, combined, fault

#: A sweep of more learners is a slip of the pen.
_MOST_LEARNERS = 1000


class ListedLearner(Model):
    """One entry of ``[[sweep.list]]``."""

    name: Line | None = None
    """What people call it; its number if not set."""
    parameters: Parameters = Field(default_factory=dict)
    """Filled into the placeholders of commands, handed to every task as JSON, keywords of functions that take them."""

    def label(self, number: int) -> str:
        """What people call it, as the learner of that number."""
        return self.name or str(number)


class Sweep(Model):
    """Learners that share the allocation: one per combination of the grid, or as listed, each ``repeat`` times."""

    grid: Grid | None = None
    """Parameter -> values; one learner per combination, the last key varying fastest."""
    listed: Annotated[tuple[ListedLearner, ...], BeforeValidator(as_tuple), Field(min_length=1)] | None = Field(
        default=None, alias="list"
    )
    """Learners one by one, instead of a grid."""
    repeat: Count = 1
    """How often each is there; all learners have seeds of their own."""

    def resolve(self) -> tuple[ListedLearner, ...]:
        """The learners, by their numbers."""
        once = self.listed or tuple(ListedLearner(parameters=each) for each in combined(self.grid))
        if self.repeat == 1:
            return once
        return tuple(
            learner.model_copy(update={"name": learner.name and f"{learner.name}.{k}"})
            for learner in once
            for k in range(self.repeat)
        )

    @model_validator(mode="after")
    def _check(self) -> Sweep:
        if self.grid is not None and self.listed is not None:
            raise fault("stands beside a grid; keep one of them", "list")
        once = len(self.listed or ()) or math.prod(len(values) for values in (self.grid or {}).values())
        if once * self.repeat > _MOST_LEARNERS:
            raise fault(f"has {once * self.repeat} learners, more than {_MOST_LEARNERS}", "grid")
        labels = [learner.label(number) for number, learner in enumerate(self.resolve())]
        if twice := [label for label, times in Counter(labels).items() if times > 1]:
            raise fault(f"has several learners that are called {twice[0]!r}", "list")
        return self
