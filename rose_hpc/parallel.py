"""ROSE's ParallelReinforcementLearner: several learners with the same tasks, on one engine, in one run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from types import MappingProxyType
from typing import Any

from rose_hpc.driver import run_facts
from rose_hpc.errors import UsageError
from rose_hpc.inner import Inner
from rose_hpc.journal import scan_journal
from rose_hpc.learners import OneEnvironment, ReinforcementLearner, handed_out
from rose_hpc.learning import Learning, last_known
from rose_hpc.population import Population, open_learners
from rose_hpc.progress import Progress
from rose_hpc.session import Session
from rose_hpc.signals import interrupts
from rose_hpc.states import IterationState, LearnerConfig
from rose_hpc.workflow import Workflow

#: the configurations of several learners: in their order, or by learner_id
Configs = Sequence[LearnerConfig | None] | Mapping[Any, LearnerConfig | None]


class ParallelReinforcementLearner(OneEnvironment, ReinforcementLearner):
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
                sources = [Inner(each.states()) for each in learnings.values()]
                async with aclosing(population), aclosing(Inner(population.follow(sources))) as states:
                    async for state in states:
                        with handed_out(next(each for each in learnings.values() if each.state is state)):
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
