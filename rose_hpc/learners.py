"""ROSE's learners: decorators that fill a :class:`~rose_hpc.workflow.Workflow`, and the loop behind them.

Everything runs through the one loop of :mod:`rose_hpc.loop`: a program's run has a directory, a journal and a lock
like any other, and is resumed by running the program again with ``ROSE_HPC_RUN`` set (``rose-hpc resume RUN`` does
that).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, overload

from rose_hpc import rundir
from rose_hpc.driver import run_facts
from rose_hpc.errors import UsageError
from rose_hpc.inner import Inner
from rose_hpc.journal import scan_journal
from rose_hpc.learning import Learning, last_known
from rose_hpc.patience import Patience
from rose_hpc.progress import Progress
from rose_hpc.registration import F, Registering, whole
from rose_hpc.rundir import RunDir
from rose_hpc.seeds import choose_seed
from rose_hpc.session import Observer, Session, clear_scratch
from rose_hpc.signals import interrupts
from rose_hpc.states import IterationState, LearnerConfig, TaskConfig, check_task
from rose_hpc.tracking import TrackerBase
from rose_hpc.workflow import Workflow

log = logging.getLogger(__name__)


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
        self._seed = None if seed is None else whole("seed", seed, 0, 2**63)
        self._window = whole("window", window, 1)
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
            known = session.progress.run.get("seed")
            seed = known if known is not None else self._seed if self._seed is not None else choose_seed()
            if self._seed not in (None, seed):
                session.warn(f"the run keeps its seed {seed}: {self._seed} would make another run")
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
        from rose_hpc.report.lines import Lines
        from rose_hpc.report.view import PlainView

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
                async with aclosing(learning.loop), aclosing(Inner(learning.states())) as states:
                    async for state in states:
                        with handed_out(learning):
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


@contextmanager
def handed_out(learning: Learning) -> Iterator[None]:
    """While a program has a state of this learner: if it fails in its loop body, that has not ended."""
    user = asyncio.current_task()
    try:
        yield
    except (GeneratorExit, asyncio.CancelledError):
        if user is not None and user.done() and (user.cancelled() or user.exception() is not None):
            learning.loop.take_back()
        raise


class OneEnvironment(Registering):
    """What has one environment, unless they are given names."""

    @overload
    def environment_task(self, func: F, /) -> F: ...
    @overload
    def environment_task(self, **options: Any) -> Callable[[F], F]: ...
    def environment_task(self, func: Any = None, **options: Any) -> Any:
        """Register the environment, bare or called; several where each has a ``name``."""

        def decorate(func: F) -> F:
            return self._environment(options.pop("name", "env_1"), options)(func)

        return decorate if func is None else decorate(func)


class SequentialReinforcementLearner(OneEnvironment, SingleLearner):
    """The one-environment case of :class:`ParallelExperience`."""
