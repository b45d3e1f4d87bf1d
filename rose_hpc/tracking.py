"""Trackers, as in ROSE: one is told of the pipeline, of every iteration, and of the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rose_hpc.states import IterationState


@dataclass(frozen=True)
class TaskManifest:
    """A registered task: its function's name and module, and how it runs."""

    func_name: str
    func_module: str
    as_executable: bool
    decor_kwargs: dict[str, Any] = field(default_factory=dict)
    log_params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CriterionManifest(TaskManifest):
    """The registered stop criterion."""

    metric_name: str = ""
    threshold: float = 0.0
    operator: str = ""


@dataclass(frozen=True)
class PipelineManifest:
    """Everything registered when the tracker was added; environments are named ``environment.<name>``."""

    learner_type: str
    tasks: dict[str, TaskManifest] = field(default_factory=dict)
    criterion: CriterionManifest | None = None
    parallel_count: int | None = None


class TrackerBase:
    """Override what you need; an exception in a tracker is logged and does not end the run."""

    def on_start(self, manifest: PipelineManifest) -> None:
        """Once, when the tracker is added."""

    def on_iteration(self, state: IterationState) -> None:
        """Once for every iteration, before the program sees its state; not again when a run is resumed."""

    def on_stop(self, final_state: IterationState | None, reason: str) -> None:
        """Once, at the end: ``criterion_met``, ``max_iter_reached``, ``stopped`` or ``error``."""
