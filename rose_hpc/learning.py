"""One learner of a program under way: its loop, the arguments of its tasks, and what the program sees of it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from operator import itemgetter
from typing import Any

from rose_hpc.errors import Interrupted, UsageError
from rose_hpc.inner import Inner
from rose_hpc.loop import Loop
from rose_hpc.named import takes
from rose_hpc.progress import Progress
from rose_hpc.session import Session
from rose_hpc.states import IterationState, LearnerConfig
from rose_hpc.workflow import Workflow


class Learning:
    """One learner under way.

    Args:
        session: its run, owned, with its first records.
        workflow: what it consists of.
        asyncflow: the engine.
        learner: which of the program's learners it is: its seeds are its own.
        learner_id: what its states say they are of; None outside a population.
        config: arguments for its tasks until others are set, where its run has no record of others.
        beside: another learner, with which it shares how many environments run at once.

    Raises:
        UsageError: the functions do not take what they will be given.
    """

    def __init__(
        self,
        session: Session,
        workflow: Workflow,
        asyncflow: Any,
        learner: int,
        *,
        learner_id: int | str | None = None,
        config: LearnerConfig | None = None,
        beside: Learning | None = None,
    ) -> None:
        self.session = session
        self.workflow = workflow
        self.learner_id = learner_id
        self.state: IterationState | None = None
        if config is not None:
            check_config(config)
        self._config = config
        self._recorded: Any = None  # what _config was made from
        self._stopping = False
        self._check_values()
        self.loop: Loop = Loop.of(
            session,
            workflow,
            asyncflow,
            learner=learner,
            arguments=self._arguments,
            beside=None if beside is None else beside.loop,
        )

    @property
    def config(self) -> LearnerConfig | None:
        """The arguments of its tasks in the current iteration."""
        recorded = self.session.progress.config
        if recorded is not self._recorded:
            self._recorded, self._config = recorded, LearnerConfig.model_validate(recorded)
        return self._config

    async def states(self) -> AsyncGenerator[IterationState, None]:
        """The state of every iteration once it is checked, to the end or :meth:`stop`.

        Raises:
            TaskError, EngineError, Interrupted: as :meth:`~rose_hpc.loop.Loop.iterations`.
        """
        try:
            async with aclosing(Inner(self.loop.iterations())) as iterations:
                async for iteration in iterations:
                    self.state = self._build(iteration)
                    yield self.state
        except Interrupted:
            if not self._stopping:
                raise

    def stop(self) -> None:
        """End what runs; no further state is yielded, and the run can be resumed."""
        self._stopping = True
        self.loop.interrupt("the program called stop()")

    def set_next_config(self, config: LearnerConfig) -> None:
        """Use ``config`` from the next iteration on: at once a record of the run.

        Raises:
            UsageError: when no record can hold it.
        """
        # at once: before the iteration is closed in which this was set, which may be another learner's
        self.session.record_now("config", iteration=self.session.progress.iteration, config=as_record(config))

    def _arguments(self, stage: str, iteration: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        task = {"collect": "environment", "check": "criterion"}.get(stage, stage)
        config = self.config.get_task_config(task, iteration) if self.config else None
        return (config.args, config.kwargs) if config else ((), {})

    def _check_values(self) -> None:
        """Whether the functions can take what they will be given, before an hour of collecting has passed."""
        workflow = self.workflow
        criterion = [("check", workflow.criterion.work, 1)] if workflow.criterion else []
        for stage, work, count in (("update", workflow.update, len(workflow.environments)), *criterion):
            args, kwargs = self._arguments(stage, self.session.progress.iteration)
            function = work.function or work.make_command
            if function is not None and not takes(function, len(args) + count, kwargs):
                raise UsageError(
                    f"{function.__name__} is called with {len(args) + count} values and does not take them",
                    hint=f"write `def {function.__name__}(*args)`",
                )

    def _build(self, iteration: int) -> IterationState:
        progress, criterion = self.session.progress, self.workflow.criterion
        state: dict[str, Any] = {}
        for name, value in self.loop.stages.values.items():
            if isinstance(value, dict):
                state.update(
                    {k: v for k, v in value.items() if name != "check" or k not in ("metric_value", "should_stop")}
                )
        reward = progress.reward if criterion else None
        return IterationState(
            iteration=iteration,
            metric_name=criterion.metric if criterion else None,
            metric_value=reward,
            metric_threshold=criterion.threshold if criterion else None,
            metric_history=list(map(itemgetter(1), progress.rewards)),
            should_stop=criterion is not None and reward is not None and criterion.met(reward),
            current_config=self.config,
            learner_id=self.learner_id,
            state=state,
        )


def check_config(config: LearnerConfig) -> None:
    """Refuse what is none.

    Raises:
        UsageError: it says what to write.
    """
    if not isinstance(config, LearnerConfig):
        raise UsageError(
            f"a configuration is a LearnerConfig, not a {type(config).__name__}",
            hint='write LearnerConfig(update=TaskConfig(kwargs={"rate": 0.1}))',
        )


def as_record(config: LearnerConfig) -> dict[str, Any]:
    """``config`` as JSON gives it back.

    Raises:
        UsageError: when it would not.
    """
    check_config(config)
    try:
        recorded: dict[str, Any] = json.loads(json.dumps(config.model_dump(mode="json"), allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"set_next_config: {error}", hint="its arguments must be JSON-like, so that a record holds them"
        ) from error
    return recorded


def last_known(
    progress: Progress, config: LearnerConfig | None = None, learner_id: int | str | None = None
) -> IterationState | None:
    """The last state of a run as its journal tells it; None when no iteration is complete."""
    if progress.iteration == 0:
        return None
    return IterationState(
        iteration=progress.iteration - 1,
        metric_name=progress.run.get("metric"),
        metric_value=progress.reward,
        metric_threshold=progress.run.get("threshold"),
        metric_history=list(map(itemgetter(1), progress.rewards)),
        should_stop=(progress.end or {}).get("state") == "converged",
        current_config=config,
        learner_id=learner_id,
    )
