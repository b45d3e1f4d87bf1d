"""ROSE's learners: decorators that fill a :class:`~rose_hpc.workflow.Workflow`, and the loop behind them.

Everything runs through the one loop of :mod:`rose_hpc.loop`: a program's run has a directory, a journal and a lock
like any other, and is resumed by running the program again with ``ROSE_HPC_RUN`` set (``rose-hpc resume RUN`` does
that).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, overload

from rose_hpc import rundir
from rose_hpc.driver import run_facts
from rose_hpc.errors import Interrupted, UsageError
from rose_hpc.execution.engine import Engine
from rose_hpc.loop import Loop
from rose_hpc.named import takes
from rose_hpc.patience import Patience
from rose_hpc.registration import F, Registering
from rose_hpc.rundir import RunDir
from rose_hpc.seeds import choose_seed
from rose_hpc.session import Observer, Session, clear_scratch
from rose_hpc.signals import interrupts
from rose_hpc.stages import Stages
from rose_hpc.states import IterationState, LearnerConfig
from rose_hpc.tracking import TrackerBase
from rose_hpc.tries import Tries
from rose_hpc.workflow import Workflow

log = logging.getLogger(__name__)

#: the runs of the learners that have started in this process: the first has the run directory, the others folders in it
_started: list[RunDir] = []


class ReinforcementLearner(Registering):
    """What all learners share: registering tasks, and running them.

    Args:
        asyncflow: a ``radical.asyncflow.WorkflowEngine`` on any backend.
        run_dir: the run directory; by default ``$ROSE_HPC_RUN`` to resume one, else a new one in ``runs/``.
        seed: the run's seed; chosen if not given. A resumed run keeps its own.
        window: iterations whose banks the update sees as one.
        patience: with how few environments an iteration goes on.
        quiet: show no progress on stderr.
    """

    def __init__(
        self,
        asyncflow: Any,
        *,
        run_dir: str | Path | None = None,
        seed: int | None = None,
        window: int = 1,
        patience: Patience | None = None,
        quiet: bool = False,
    ) -> None:
        super().__init__()
        if not hasattr(asyncflow, "executable_task"):
            raise UsageError(
                f"{type(asyncflow).__name__} is not a WorkflowEngine",
                hint="await WorkflowEngine.create(backend) makes one",
            )
        self.asyncflow = asyncflow
        self.run: RunDir | None = None
        self.learner_id: int | str | None = None
        self._run_dir = run_dir
        self._seed = seed
        self._window = window
        self._patience = patience or Patience()
        self._quiet = quiet
        self._trackers: list[TrackerBase] = []
        self._config: LearnerConfig | None = None
        self._pending: LearnerConfig | None = None
        self._state: IterationState | None = None
        self._loop: Loop | None = None
        self._stopping = False

    def add_tracker(self, tracker: TrackerBase) -> None:
        """Let ``tracker`` follow; call it after all tasks are registered."""
        tracker.on_start(self._manifest())
        self._trackers.append(tracker)

    # -- running -------------------------------------------------------------------------------------------------------

    def set_next_config(self, config: LearnerConfig) -> None:
        """Use ``config`` from the next iteration on; it is a record of the run, so its arguments must be JSON-like."""
        self._pending = config

    def get_current_state(self) -> IterationState | None:
        """The last state that was yielded."""
        return self._state

    def stop(self) -> None:
        """End the loop: what runs is ended, no further state is yielded, and the run can be resumed."""
        if self._loop is not None:
            self._stopping = True
            self._loop.interrupt("the program called stop()")

    async def learn(self, max_iter: int = 0, initial_config: LearnerConfig | None = None) -> IterationState | None:
        """Run to the end; the last state, or None when a resumed run had nothing left to do."""
        state = None
        async for each in self.start(max_iter=max_iter, initial_config=initial_config):
            state = each
        return state or self._last_known()

    async def start(
        self, max_iter: int = 0, initial_config: LearnerConfig | None = None
    ) -> AsyncIterator[IterationState]:
        """Run, yielding the state of every iteration once it is checked; a resumed run does not yield again what it
        has.

        Args:
            max_iter: iterations at most; 0: until the criterion is met.
            initial_config: arguments for the tasks, until :meth:`set_next_config`.

        Raises:
            UsageError: something is not registered, or it would never end.
            TaskError: a task failed; the run can be resumed.
            Interrupted: on SIGINT, SIGTERM or SIGHUP, exit code 130; the run can be resumed.
        """
        workflow = self._workflow(max_iter, self._window, self._patience)
        session, learner = self._open(workflow)
        engine = Engine(self.asyncflow, session.run.scratch, session.run.owner, session.ownership.epoch)
        try:
            self._config = self._configured(session, initial_config)
            self._check_values(workflow)
            tries = Tries(session, workflow, engine, learner=learner, arguments=self._arguments)
            self._loop = Loop(Stages(tries))
            with interrupts(self._loop):
                states = self._states(self._loop)
                try:
                    async for state in states:
                        yield state
                finally:
                    await states.aclose()
        finally:
            self._loop = None
            await engine.close()
            self._tell_stop(session)
            session.close()

    async def _states(self, loop: Loop) -> AsyncGenerator[IterationState, None]:
        iterations = loop.iterations()
        config: dict[str, Any] | None = None
        try:
            while True:
                try:
                    iteration = await iterations.asend(config)
                except StopAsyncIteration:
                    return
                except Interrupted:
                    if self._stopping:
                        return
                    raise
                self._state = state = self._build(loop, iteration)
                self._tell_iteration(state)
                yield state
                config = self._take_pending()
        finally:
            await iterations.aclose()

    def _open(self, workflow: Workflow) -> tuple[Session, int]:
        """The run of this learner, owned."""
        learner = len(_started)
        inside_a_task = os.environ.get("ROSE_HPC_STAGE")  # whose ROSE_HPC_RUN is the outer run's
        given = self._run_dir or (None if inside_a_task else os.environ.get("ROSE_HPC_RUN"))
        path = None if given is None else rundir.check_path(Path(given))
        if self._run_dir is None and learner > 0:
            path = _started[0].path / f"learner-{learner}"
        exists = path is not None and (path / "journal.jsonl").exists()
        self.run = RunDir(path) if path is not None and exists else rundir.create(workflow.name, path)
        _started.append(self.run)
        session = Session(self.run, self._observers())
        try:
            clear_scratch(self.run)
            seed = self._seed if self._seed is not None else choose_seed()
            facts = run_facts(workflow, session.progress.run.get("seed", seed), source="program")
            session.begin(facts, engine=getattr(self.asyncflow.backend, "name", None))
            session.check_scripts(sys.argv[:1], workflow.cwd)
        except BaseException:
            session.close()
            raise
        return session, learner

    def _observers(self) -> list[Observer]:
        if self._quiet:
            return []
        from rose_hpc.report.view import Lines, PlainView

        where = "" if self.run is None else str(self.run.path)
        return [PlainView(sys.stderr, Lines(where, failures=False))]

    def _configured(self, session: Session, initial: LearnerConfig | None) -> LearnerConfig | None:
        recorded = session.progress.config
        return initial if recorded is None else LearnerConfig.model_validate(recorded)

    def _check_values(self, workflow: Workflow) -> None:
        """Whether the functions can take what they will be given, before an hour of collecting has passed."""
        criterion = [("check", workflow.criterion.work, 1)] if workflow.criterion else []
        for stage, work, count in (("update", workflow.update, len(workflow.environments)), *criterion):
            args, kwargs = self._arguments(stage, 0)
            function = work.function or work.make_command
            if function is not None and not takes(function, len(args) + count, kwargs):
                raise UsageError(
                    f"{function.__name__} is called with {len(args) + count} values and does not take them",
                    hint=f"write `def {function.__name__}(*args)`",
                )

    def _take_pending(self) -> dict[str, Any] | None:
        if self._pending is None:
            return None
        self._config, self._pending = self._pending, None
        try:
            return self._config.model_dump(mode="json")
        except ValueError as error:
            raise UsageError(
                f"set_next_config: {error}", hint="its arguments must be JSON-like, so that a record holds them"
            ) from error

    def _arguments(self, stage: str, iteration: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        task = {"collect": "environment", "check": "criterion"}.get(stage, stage)
        config = self._config.get_task_config(task, iteration) if self._config else None
        return (config.args, config.kwargs) if config else ((), {})

    def _build(self, loop: Loop, iteration: int) -> IterationState:
        progress, criterion = loop.session.progress, loop.workflow.criterion
        state: dict[str, Any] = {}
        for name, value in loop.stages.values.items():
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
            metric_history=[value for _, value in progress.rewards],
            should_stop=criterion is not None and reward is not None and criterion.met(reward),
            current_config=self._config,
            learner_id=self.learner_id,
            state=state,
        )

    def _last_known(self) -> IterationState | None:
        """The last state of a run that was already finished, from its journal."""
        if self.run is None:
            return None
        from rose_hpc.journal import read_journal
        from rose_hpc.progress import Progress

        progress = Progress.of(read_journal(self.run.journal))
        if progress.iteration == 0:
            return None
        run = progress.run
        ended = progress.end or {}
        return IterationState(
            iteration=progress.iteration - 1,
            metric_name=run.get("metric"),
            metric_value=progress.reward,
            metric_threshold=run.get("threshold"),
            metric_history=[value for _, value in progress.rewards],
            should_stop=ended.get("state") == "converged",
            current_config=self._config,
        )

    def _tell(self, what: Callable[[TrackerBase], None]) -> None:
        for tracker in self._trackers:
            try:
                what(tracker)
            except Exception:
                log.exception("the tracker %s failed; the run goes on", type(tracker).__name__)

    def _tell_iteration(self, state: IterationState) -> None:
        self._tell(lambda tracker: tracker.on_iteration(state))

    def _tell_stop(self, session: Session) -> None:
        reasons = {"converged": "criterion_met", "max_iterations": "max_iter_reached", "stopped": "stopped"}
        reason = reasons.get((session.progress.end or {}).get("state", ""), "error")
        self._tell(lambda tracker: tracker.on_stop(self._state, reason))


class ParallelExperience(ReinforcementLearner):
    """N environments side by side, their experience merged, one update, one check; and again.

    ::

        pe = ParallelExperience(asyncflow)

        @pe.environment_task(name="env_1")
        async def environment_1(*args):
            return f"{code_path}/environment.py parameter=1"
    """

    def environment_task(self, name: str, **options: Any) -> Callable[[F], F]:
        """Register an environment at once; options: ``as_executable``, ``timeout_s``, ``cores_per_rank``, ..."""
        return self._environment(name, options)


class SequentialReinforcementLearner(ReinforcementLearner):
    """The one-environment case of :class:`ParallelExperience`."""

    @overload
    def environment_task(self, func: F, /) -> F: ...
    @overload
    def environment_task(self, **options: Any) -> Callable[[F], F]: ...
    def environment_task(self, func: Any = None, **options: Any) -> Any:
        """Register the environment, bare or called."""

        def decorate(func: F) -> F:
            return self._environment(options.pop("name", "env_1"), options)(func)

        return decorate if func is None else decorate(func)
