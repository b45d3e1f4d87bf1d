"""Reinforcement learning over expensive simulators on Slurm clusters.

The public names are imported lazily, so that ``rose-hpc status`` on a login node loads no numpy, h5py or radical.*.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: public name -> the module that defines it
_NAMES = {
    "ShardWriter": "experience.shard",
    "merge_shards": "experience.merge",
    "ExperienceBank": "experience.bank",
    "current_task": "task",
    "Task": "task",
    "ParallelExperience": "learners",
    "SequentialReinforcementLearner": "learners",
    "IterationState": "learners",
    "LearnerConfig": "learners",
    "TaskConfig": "learners",
    "TrackerBase": "learners",
    "EmbeddedExecutionBackend": "execution.local",
    "RadicalExecutionBackend": "execution.pilot",
    "execution_backend": "execution.select",
    "RoseHpcError": "errors",
    "Interrupted": "errors",
    "GREATER_THAN_THRESHOLD": "metrics",
    "GREATER_THAN_OR_EQUAL_TO_THRESHOLD": "metrics",
    "LESS_THAN_THRESHOLD": "metrics",
    "LESS_THAN_OR_EQUAL_TO_THRESHOLD": "metrics",
    "EQUAL_TO_THRESHOLD": "metrics",
}

__all__ = ["__version__", *_NAMES]  # noqa: PLE0604 - the names are strings, made from the table above


def __getattr__(name: str) -> Any:
    try:
        module = _NAMES[name]
    except KeyError:
        raise AttributeError(f"module 'rose_hpc' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"rose_hpc.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from rose_hpc.errors import Interrupted as Interrupted
    from rose_hpc.errors import RoseHpcError as RoseHpcError
