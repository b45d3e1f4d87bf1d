"""ROSE's learners: decorators that fill a :class:`~rose_hpc.workflow.Workflow`, and the loop behind them.

Everything runs through the one loop of :mod:`rose_hpc.loop`: a program's run has a directory, a journal and a lock
like any other, and is resumed by running the program again with ``ROSE_HPC_RUN`` set (``rose-hpc resume RUN`` does
that).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

from rose_hpc import rundir
from rose_hpc.driver import run_facts
from rose_hpc.errors import UsageError
from rose_hpc.journal import scan_journal
from rose_hpc.learning import Learning, last_known
from rose_hpc.patience import Patience
from rose_hpc.population import Population, open_learners
from rose_hpc.progress import Progress
from rose_hpc.registration import F, Registering
from rose_hpc.rundir import RunDir
from rose_hpc.seeds import choose_seed
from rose_hpc.session import Observer, Session, clear_scratch
from rose_hpc.signals import interrupts
from rose_hpc.states import IterationState, LearnerConfig, TaskConfig, check_task
from rose_hpc.tracking import TrackerBase
from rose_hpc.workflow import Workflow

log = logging.getLogger(__name__)

#: the configurations of several learners: in their order, or by learner_id
Configs = Sequence[LearnerConfig | None] | Mapping[Any, LearnerConfig | None]

#: the runs of the learners that have started in this process: the first has the run directory, the others folders in it
_started: list[RunDir] = []


class ReinforcementLearner(Registering):
    """What all learners share: registering tasks, trackers, and the run.

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
        self._run_dir = run_dir
        self._seed = seed
        self._window = window
        self._patience = patience or Patience()
        self._quiet = quiet
        self._trackers: list[TrackerBase] = []
        self._state: IterationState | None = None

    def add_tracker(self, tracker: TrackerBase) -> None:
        """Let ``tracker`` follow; call it after all tasks are registered."""
        tracker.on_start(self._manifest())
        self._trackers.append(tracker)

    def create_iteration_schedule(
        self, task_name: str, schedule: Mapping[int, Mapping[str, Any]]
    ) -> dict[int, TaskConfig]:
        """What a :class:`LearnerConfig` takes for a task, from plain data by iteration (-1: all others).

        As in ROSE: ``{0: {"kwargs": {"rate": 0.1}}, -1: {"args": (1,)}}``.
        """
        check_task(task_name)
        return {iteration: TaskConfig(**given) for iteration, given in schedule.items()}

    def create_adaptive_schedule(
        self, task_name: str, param_schedule: Callable[[int], Mapping[str, Any]], iterations: int = 100
    ) -> dict[int, TaskConfig]:
        """The same from a function of the iteration; after ``iterations``, the last one's values hold."""
        schedule = {iteration: param_schedule(iteration) for iteration in range(iterations)}
        return self.create_iteration_schedule(task_name, {**schedule, -1: schedule[iterations - 1]})

    def get_current_state(self) -> IterationState | None:
        """The last state that was yielded."""
        return self._state

    def _open(self, workflow: Workflow, facts: Mapping[str, Any], learners: int = 1) -> tuple[Session, int]:
        """The run, owned, and the number of its (first) learner in this program.

        Args:
            workflow: what it consists of.
            facts: what its run record says beside what follows from the workflow.
            learners: how many learners it has.
        """
        number = len(_started)
        inside_a_task = os.environ.get("ROSE_HPC_STAGE")  # whose ROSE_HPC_RUN is the outer run's
        given = self._run_dir or (None if inside_a_task else os.environ.get("ROSE_HPC_RUN"))
        path = None if given is None else rundir.check_path(Path(given))
        if self._run_dir is None and number > 0:
            path = _started[0].learner(number).path
        exists = path is not None and (path / "journal.jsonl").exists()
        self.run = RunDir(path) if path is not None and exists else rundir.create(workflow.name, path)
        _started.extend([self.run] * learners)
        session = Session(self.run, self._observers())
        try:
            clear_scratch(self.run)
            seed = session.progress.run.get("seed", self._seed if self._seed is not None else choose_seed())
            session.begin({**run_facts(workflow, seed, source="program"), **facts}, engine=self._engine)
            session.check_scripts(sys.argv[:1], workflow.cwd)
        except BaseException:
            session.close()
            raise
        return session, number

    @property
    def _engine(self) -> str | None:
        name = getattr(self.asyncflow.backend, "name", None)
        return None if name is None else str(name)

    def _observers(self) -> list[Observer]:
        if self._quiet:
            return []
        from rose_hpc.report.view import Lines, PlainView

        where = "" if self.run is None else str(self.run.path)
        return [PlainView(sys.stderr, Lines(where, failures=False))]

    def _seen(self, state: IterationState) -> IterationState:
        """``state``, of which the trackers have been told."""
        self._state = state
        self._tell(lambda tracker: tracker.on_iteration(state))
        return state

    def _tell(self, what: Callable[[TrackerBase], None]) -> None:
        for tracker in self._trackers:
            try:
                what(tracker)
            except Exception:
                log.exception("the tracker %s failed; the run goes on", type(tracker).__name__)

    def _tell_stop(self, session: Session) -> None:
        reasons = {"converged": "criterion_met", "max_iterations": "max_iter_reached", "stopped": "stopped"}
        reason = reasons.get((session.progress.end or {}).get("state", ""), "error")
        self._tell(lambda tracker: tracker.on_stop(self._state, reason))


class SingleLearner(ReinforcementLearner):
    """A learner by itself."""

    learner_id: int | str | None = None
    _learning: Learning | None = None
    _pending: LearnerConfig | None = None  # set before it began

    def set_next_config(self, config: LearnerConfig) -> None:
        """Use ``config`` from the next iteration on; it is a record of the run, so its arguments must be JSON-like."""
        if self._learning is None:
            self._pending = config
        else:
            self._learning.set_next_config(config)

    def stop(self) -> None:
        """End the loop: what runs is ended, no further state is yielded, and the run can be resumed."""
        if self._learning is not None:
            self._learning.stop()

    async def learn(self, max_iter: int = 0, initial_config: LearnerConfig | None = None) -> IterationState | None:
        """Run to the end; the last state, that of its journal when a resumed run had nothing left to do."""
        state = None
        async for each in self.start(max_iter=max_iter, initial_config=initial_config):
            state = each
        return state or (None if self.run is None else last_known(Progress.of(scan_journal(self.run.journal))))

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
        session, number = self._open(workflow, {})
        try:
            self._learning = learning = Learning(
                session, workflow, self.asyncflow, number, learner_id=self.learner_id, config=initial_config
            )
            if self._pending is not None:
                learning.set_next_config(self._pending)
                self._pending = None
            with interrupts(learning.loop):
                async with aclosing(learning.loop), aclosing(learning.states()) as states:
                    async for state in states:
                        yield self._seen(state)
        finally:
            self._learning = None
            self._tell_stop(session)
            session.close()


class ParallelExperience(SingleLearner):
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


class _OneEnvironment(Registering):
    @overload
    def environment_task(self, func: F, /) -> F: ...
    @overload
    def environment_task(self, **options: Any) -> Callable[[F], F]: ...
    def environment_task(self, func: Any = None, **options: Any) -> Any:
        """Register the environment, bare or called; several where each has a ``name``."""

        def decorate(func: F) -> F:
            return self._environment(options.pop("name", "env_1"), options)(func)

        return decorate if func is None else decorate(func)


class SequentialReinforcementLearner(_OneEnvironment, SingleLearner):
    """The one-environment case of :class:`ParallelExperience`."""


class ParallelReinforcementLearner(_OneEnvironment, ReinforcementLearner):
    """Several learners with the same tasks, each with arguments, seeds and policies of its own, on one engine.

    ::

        rl = ParallelReinforcementLearner(asyncflow)
        ...
        async for state in rl.start(parallel_learners=3, max_iter=100, learner_configs=[slow, fast, None]):
            print(state.learner_id, state.iteration, state.metric_value)

    Each has a run directory of its own, ``learner-0`` and on, inside the run's.
    """

    _learnings: Mapping[int | str, Learning] = MappingProxyType({})
    _pending: Sequence[tuple[LearnerConfig, int | str | None]] = ()

    def set_next_config(self, config: LearnerConfig, learner_id: int | str | None = None) -> None:
        """Use ``config`` from the next iteration on; it is a record of the run, so its arguments must be JSON-like.

        Args:
            config: the arguments.
            learner_id: of this learner; None: of every one. One that has ended has no next iteration.

        Raises:
            UsageError: there is no such learner, or no record can hold ``config``.
        """
        if not self._learnings:
            self._pending = (*self._pending, (config, learner_id))
            return
        if learner_id is not None and learner_id not in self._learnings:
            known = ", ".join(map(repr, self._learnings))
            raise UsageError(f"there is no learner {learner_id!r}", hint=f"there are {known}")
        for known_id, learning in self._learnings.items():
            if learner_id in (None, known_id) and learning.session.progress.end is None:
                learning.set_next_config(config)

    def stop(self) -> None:
        """End all learners: what runs is ended, no further state of it is yielded, and the run can be resumed."""
        for learning in self._learnings.values():
            learning.stop()

    async def learn(
        self,
        parallel_learners: int | None = None,
        max_iter: int = 0,
        learner_configs: Configs | None = None,
        learner_names: Sequence[str] | None = None,
    ) -> list[IterationState | None]:
        """Run to the end; the last state of each learner, also of those that had nothing left to do."""
        async for _ in self.start(parallel_learners, max_iter, learner_configs, learner_names):
            pass
        return [last_known(Progress.of(scan_journal(run.journal)), None, name) for name, run in self._runs.items()]

    async def start(
        self,
        parallel_learners: int | None = None,
        max_iter: int = 0,
        learner_configs: Configs | None = None,
        learner_names: Sequence[str] | None = None,
    ) -> AsyncIterator[IterationState]:
        """Run, yielding the states of all learners as they come, each with its ``learner_id``.

        A learner goes on once its state was looked at. One that converges, reaches ``max_iter`` or fails stops no
        other; a failure is told at once, and raised when all have ended.

        Args:
            parallel_learners: how many, at least 2; by default as many as there are names or configurations, or 2.
            max_iter: iterations of each at most; 0: until its criterion is met.
            learner_configs: arguments for the tasks of each learner, until :meth:`set_next_config`: in order, or by
                learner_id.
            learner_names: the learner_ids; by default 0, 1, ...

        Raises:
            UsageError: something is not registered, would never end, or does not match.
            TaskError: of the first learner that failed; the run can be resumed.
            Interrupted: on SIGINT, SIGTERM or SIGHUP, exit code 130; the run can be resumed.
        """
        configs = by_learner(parallel_learners, learner_configs, learner_names)
        workflow = self._workflow(max_iter, self._window, self._patience)
        labels = [str(each) for each in configs]
        session, first = self._open(workflow, {"learners": [{"name": label} for label in labels]}, len(configs))
        try:
            with ExitStack() as stack:
                learnings = self._begin(session, workflow, first, configs, stack)
                self._learnings = learnings
                for config, learner_id in self._pending:
                    self.set_next_config(config, learner_id)
                population = Population(session, [each.loop for each in learnings.values()], labels)
                stack.enter_context(interrupts(population))
                sources = [each.states() for each in learnings.values()]
                async with aclosing(population), aclosing(population.follow(sources)) as states:
                    async for state in states:
                        yield self._seen(state)
        finally:
            self._learnings, self._pending = {}, ()
            self._tell_stop(session)
            session.close()

    def _begin(
        self,
        session: Session,
        workflow: Workflow,
        first: int,
        configs: Mapping[int | str, LearnerConfig | None],
        stack: ExitStack,
    ) -> dict[int | str, Learning]:
        facts = run_facts(workflow, session.progress.run["seed"], source="program")
        each = [{**facts, "label": str(learner_id)} for learner_id in configs]
        sessions = open_learners(session, each, self._engine, stack)
        self._runs = dict(zip(configs, (learner.run for learner in sessions), strict=True))
        learnings: dict[int | str, Learning] = {}
        beside = None
        for number, ((learner_id, config), own) in enumerate(zip(configs.items(), sessions, strict=True), first):
            learnings[learner_id] = learning = Learning(
                own, workflow, self.asyncflow, number, learner_id=learner_id, config=config, beside=beside
            )
            beside = beside or learning
        return learnings


def by_learner(
    count: int | None, configs: Configs | None, names: Sequence[str] | None
) -> dict[int | str, LearnerConfig | None]:
    """The configuration of each learner by its learner_id, from what :meth:`ParallelReinforcementLearner.start` takes.

    Raises:
        UsageError: they do not match, or it is a single learner.
    """
    if count is None:
        count = len(names or configs or (0, 1))
    ids: list[int | str] = list(range(count) if names is None else names)
    if count < 2:
        raise UsageError(f"{count} learner is no population", hint="use SequentialReinforcementLearner for one")
    if len(ids) != count or len(set(map(str, ids))) != count:
        raise UsageError(f"learner_names are {ids}, for {count} learners", hint="give each a name of its own")
    if isinstance(configs, Mapping):
        if unknown := [key for key in configs if key not in ids]:
            raise UsageError(f"learner_configs has {unknown[0]!r}", hint=f"the learners are {ids}")
        return {each: configs.get(each) for each in ids}
    if configs is not None and len(configs) != count:
        raise UsageError(f"there are {len(configs)} learner_configs for {count} learners", hint="give one to each")
    return dict(zip(ids, configs or [None] * count, strict=True))
