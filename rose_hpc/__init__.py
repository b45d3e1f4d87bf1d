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
    "ParallelReinforcementLearner": "parallel",
    "IterationState": "states",
    "LearnerConfig": "states",
    "TaskConfig": "states",
    "TrackerBase": "tracking",
    "Patience": "patience",
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

__all__ = ["__version__", *_NAMES]


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
    from rose_hpc.execution.local import EmbeddedExecutionBackend as EmbeddedExecutionBackend
    from rose_hpc.execution.pilot import RadicalExecutionBackend as RadicalExecutionBackend
    from rose_hpc.execution.select import execution_backend as execution_backend
    from rose_hpc.experience.bank import ExperienceBank as ExperienceBank
    from rose_hpc.experience.merge import merge_shards as merge_shards
    from rose_hpc.experience.shard import ShardWriter as ShardWriter
    from rose_hpc.learners import ParallelExperience as ParallelExperience
    from rose_hpc.learners import SequentialReinforcementLearner as SequentialReinforcementLearner
    from rose_hpc.metrics import EQUAL_TO_THRESHOLD as EQUAL_TO_THRESHOLD
    from rose_hpc.metrics import GREATER_THAN_OR_EQUAL_TO_THRESHOLD as GREATER_THAN_OR_EQUAL_TO_THRESHOLD
    from rose_hpc.metrics import GREATER_THAN_THRESHOLD as GREATER_THAN_THRESHOLD
    from rose_hpc.metrics import LESS_THAN_OR_EQUAL_TO_THRESHOLD as LESS_THAN_OR_EQUAL_TO_THRESHOLD
    from rose_hpc.metrics import LESS_THAN_THRESHOLD as LESS_THAN_THRESHOLD
    from rose_hpc.parallel import ParallelReinforcementLearner as ParallelReinforcementLearner
    from rose_hpc.patience import Patience as Patience
    from rose_hpc.states import IterationState as IterationState
    from rose_hpc.states import LearnerConfig as LearnerConfig
    from rose_hpc.states import TaskConfig as TaskConfig
    from rose_hpc.task import Task as Task
    from rose_hpc.task import current_task as current_task
    from rose_hpc.tracking import TrackerBase as TrackerBase
