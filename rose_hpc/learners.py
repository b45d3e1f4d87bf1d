"""ROSE's learners: decorators that fill a :class:`~rose_hpc.workflow.Workflow`, and the loop behind them.

Everything runs through the one loop of :mod:`rose_hpc.loop`: a program's run has a directory, a journal and a lock
like any other, and is resumed by running the program again with ``ROSE_HPC_RUN`` set (``rose-hpc resume RUN`` does
that).
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from rose_hpc import rundir
from rose_hpc.driver import interrupts, run_facts
from rose_hpc.errors import Interrupted, UsageError
from rose_hpc.execution.engine import Engine
from rose_hpc.loop import Loop
from rose_hpc.metrics import OPERATORS, operator_for
from rose_hpc.rundir import RunDir
from rose_hpc.seeds import choose_seed
from rose_hpc.session import Observer, Session, clear_scratch
from rose_hpc.stages import Stages
from rose_hpc.states import IterationState, LearnerConfig
from rose_hpc.tracking import CriterionManifest, PipelineManifest, TaskManifest, TrackerBase
from rose_hpc.workflow import Criterion, Environment, Resources, Work, Workflow, check_name, takes

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

#: the runs of the learners that have started in this process: the first has the run directory, the others folders in it
_started: list[RunDir] = []


@dataclass(frozen=True)
class _Registered:
    """A decorated function, and what the decorator was given."""

    func: Callable[..., Any]
    as_executable: bool
    decor_kwargs: dict[str, Any]
    log_params: dict[str, Any]

    def work(self) -> Work:
        options = dict(self.decor_kwargs)
        timeout_s = options.pop("timeout_s", None)
        try:
            resources = Resources(**options)
        except TypeError:
            known = {"timeout_s", *Resources.__dataclass_fields__}
            unknown = ", ".join(sorted(options.keys() - known))
            raise UsageError(
                f"{self.func.__name__}: unknown option {unknown}", hint=f"known: {', '.join(sorted(known))}"
            ) from None
        if self.as_executable:
            if not inspect.iscoroutinefunction(self.func):
                raise UsageError(
                    f"{self.func.__name__} must be async", hint="write `async def`, returning the command line"
                )
            return Work(make_command=self.func, timeout_s=timeout_s, resources=resources)
        return Work(function=self.func, timeout_s=timeout_s, resources=resources)

    def manifest(self) -> TaskManifest:
        return TaskManifest(
            self.func.__name__, self.func.__module__, self.as_executable, dict(self.decor_kwargs), dict(self.log_params)
        )


def _register(func: F, options: dict[str, Any]) -> tuple[F, _Registered]:
    options = dict(options)
    as_executable, log_params = options.pop("as_executable", True), options.pop("log_params", {})
    registered = _Registered(func, as_executable, options, log_params)
    registered.work()  # a wrong option is named where it stands
    return func, registered


class ReinforcementLearner:
    """What all learners share: registering tasks, and running them.

    Args:
        asyncflow: a ``radical.asyncflow.WorkflowEngine`` on any backend.
        run_dir: the run directory; by default ``$ROSE_HPC_RUN`` to resume one, else a new one in ``runs/``.
        seed: the run's seed; chosen if not given. A resumed run keeps its own.
        window: iterations whose banks the update sees as one.
        quiet: show no progress on stderr.
    """

    def __init__(
        self,
        asyncflow: Any,
        *,
        run_dir: str | Path | None = None,
        seed: int | None = None,
        window: int = 1,
        quiet: bool = False,
    ) -> None:
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
        self._quiet = quiet
        self._environments: dict[str, _Registered] = {}
        self._update: _Registered | None = None
        self._criterion: tuple[_Registered, str, float, str] | None = None
        self._trackers: list[TrackerBase] = []
        self._config: LearnerConfig | None = None
        self._pending: LearnerConfig | None = None
        self._state: IterationState | None = None
        self._loop: Loop | None = None
        self._stopping = False

    # -- registering ---------------------------------------------------------------------------------------------------

    def _environment(self, name: str, options: dict[str, Any]) -> Callable[[F], F]:
        check_name(name)

        def decorate(func: F) -> F:
            if name.casefold() in {known.casefold() for known in self._environments}:
                raise UsageError(f"there is an environment {name!r} already", hint="give each a name of its own")
            func, self._environments[name] = _register(func, options)
            return func

        return decorate

    @overload
    def update_task(self, func: F, /) -> F: ...
    @overload
    def update_task(self, **options: Any) -> Callable[[F], F]: ...
    def update_task(self, func: Any = None, **options: Any) -> Any:
        """Register the update, bare or called: ``@pe.update_task`` or ``@pe.update_task(as_executable=False, ...)``.

        A function gets the environments' values in the order they were registered.
        """

        def decorate(func: F) -> F:
            func, self._update = _register(func, options)
            return func

        return decorate if func is None else decorate(func)

    def as_stop_criterion(
        self, metric_name: str, threshold: float, operator: str = "", as_executable: bool = True, **options: Any
    ) -> Callable[[F], F]:
        """Register the check. Its number is compared as ``operator`` says (by default the metric's own).

        A command prints its number as the last line of its output; a function gets the update's value and returns a
        number, or a dict with ``metric_value``.
        """
        operator = operator or operator_for(metric_name)
        if operator not in OPERATORS:
            raise UsageError(f"unknown operator {operator!r}", hint=f"use one of {' '.join(OPERATORS)}")

        def decorate(func: F) -> F:
            func, registered = _register(func, {"as_executable": as_executable, **options})
            self._criterion = (registered, metric_name, float(threshold), operator)
            return func

        return decorate

    def add_tracker(self, tracker: TrackerBase) -> None:
        """Let ``tracker`` follow; call it after all tasks are registered."""
        tracker.on_start(self._manifest())
        self._trackers.append(tracker)

    def _manifest(self) -> PipelineManifest:
        tasks = {f"environment.{name}": entry.manifest() for name, entry in self._environments.items()}
        if self._update is not None:
            tasks["update"] = self._update.manifest()
        criterion = None
        if self._criterion is not None:
            entry, metric, threshold, operator = self._criterion
            m = entry.manifest()
            criterion = CriterionManifest(
                m.func_name, m.func_module, m.as_executable, m.decor_kwargs, m.log_params, metric, threshold, operator
            )
        return PipelineManifest(type(self).__name__, tasks, criterion)

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
        workflow = self._workflow(max_iter)
        session, learner = self._open(workflow)
        try:
            self._config = self._configured(session, initial_config)
            self._check_values(workflow)
            engine = Engine(self.asyncflow, session.run.scratch, session.run.owner, session.ownership.epoch)
            self._loop = Loop(Stages(session, workflow, engine, learner=learner, arguments=self._arguments))
            with interrupts(self._loop):
                states = self._states(self._loop)
                try:
                    async for state in states:
                        yield state
                finally:
                    await states.aclose()
        finally:
            self._loop = None
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

    def _workflow(self, max_iter: int) -> Workflow:
        if self._update is None:
            raise UsageError("no update is registered", hint="decorate one with @learner.update_task")
        environments = tuple(
            Environment(name, entry.work(), shard=True if entry.as_executable else None)
            for name, entry in self._environments.items()
        )
        criterion = None
        if self._criterion is not None:
            entry, metric, threshold, operator = self._criterion
            criterion = Criterion(entry.work(), metric, operator, threshold)
        name = "".join(c if c.isalnum() or c in "_.-" else "_" for c in Path(sys.argv[0]).stem)[:48] or "program"
        return Workflow(
            name=name,
            cwd=Path.cwd(),
            environments=environments,
            update=self._update.work(),
            criterion=criterion,
            max_iterations=max_iter or None,
            window=self._window,
        )

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
        from rose_hpc.report.view import PlainView

        return [PlainView(sys.stderr)]

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
