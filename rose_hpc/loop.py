"""The heart: collect, merge, update, check, and again, until the reward converges.

The loop does whatever has no record in the journal. A first run and a resumed run are the same code.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from rose_hpc import failpoints, retention
from rose_hpc.errors import Interrupted, RoseHpcError, TaskError
from rose_hpc.execution.engine import Engine
from rose_hpc.session import Session
from rose_hpc.stages import Stages
from rose_hpc.tries import Arguments, Tries
from rose_hpc.walltime import NoTimeError
from rose_hpc.workflow import Workflow

#: how often the environments of one iteration are run again for shards found damaged
_MOST_DAMAGES = 3
#: an interrupted driver waits for so long for the disk: it may be killed soon
_DISK_S = 10.0


#: why a loop stops that a program no longer asks for iterations
LEFT = "the program left the loop"


@dataclass(frozen=True)
class Verdict:
    """Why the loop stops: a state of the contract, and the reason in words."""

    state: str
    reason: str


class Loop:
    """One driver's passage through a run: the order of the stages, and when to stop."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.session = stages.session
        self.workflow = stages.workflow
        self.walltime = stages.tries.walltime
        self._alarm: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[None] | None = None
        self._interrupt = ""
        self._cut_off = False
        self._unseen = False
        self._settled_s = 0.0  # how long the disk was waited for at the end of the last iteration

    @classmethod
    def of(
        cls,
        session: Session,
        workflow: Workflow,
        asyncflow: Any,
        *,
        learner: int = 0,
        arguments: Arguments | None = None,
        beside: Loop | None = None,
    ) -> Loop:
        """The loop of a run whose first records are there, on an engine.

        Args:
            session, workflow, learner, arguments: see :class:`~rose_hpc.tries.Tries`.
            asyncflow: the engine.
            beside: another learner's, with which it shares how many environments run at once.
        """
        owner = session.ownership
        engine = Engine(asyncflow, session.run.scratch, owner.run.owner, owner.epoch)
        limit = None if beside is None else beside.stages.tries.limit
        return cls(Stages(Tries(session, workflow, engine, learner=learner, arguments=arguments, limit=limit)))

    async def iterations(self) -> AsyncGenerator[int, None]:
        """Yield every iteration once it is checked; it is closed once the next one is asked for.

        Raises:
            TaskError: a rank or stage failed; the run can be resumed.
            Interrupted: after :meth:`interrupt`.
        """
        progress = self.session.progress
        self._watch_walltime()
        try:
            if progress.iteration:  # what the last driver was killed before it could remove
                self._retain(progress.iteration - 1, sweep=progress.extended and self.verdict() is not None)
            while (verdict := self.verdict()) is None:
                if self._interrupt:  # told while the program had the state of the iteration before
                    raise Interrupted(self._interrupt)
                iteration = progress.iteration
                await self._guarded(self._iteration(iteration))
                try:
                    yield iteration
                except GeneratorExit:
                    if not (self._unseen or self.session.closed):
                        self._close(iteration)
                    await self._end(self.verdict() or Verdict("stopped", LEFT))
                    raise
                self._close(iteration)
            await self._guarded(self.session.settle())
            await self._end(verdict)
        except Interrupted as stop:
            await self._end(Verdict("stopped", stop.message))
            raise
        except (RoseHpcError, OSError) as error:
            await self._end(Verdict("failed", str(error)))
            raise
        finally:
            if not self.session.closed:
                self._watch_walltime(stop=True)
                await self._abandon("the driver ended")

    @property
    def done(self) -> int:
        """Iterations that are complete."""
        return self.session.progress.iteration

    def verdict(self) -> Verdict | None:
        """Whether the iterations that are complete are enough, and why."""
        progress, criterion = self.session.progress, self.workflow.criterion
        if criterion is not None and progress.rewards and progress.rewards[-1][0] == progress.iteration - 1:
            reward = progress.rewards[-1][1]
            if criterion.met(reward):
                return Verdict(
                    "converged", f"{criterion.metric} {reward:g} {criterion.operator} {criterion.threshold:g}"
                )
        limit = self.workflow.max_iterations
        if limit and progress.iteration >= limit:
            return Verdict("max_iterations", f"{progress.iteration} of {limit} iterations are done")
        return None

    def interrupt(self, why: str) -> None:
        """End what runs, and leave a run that can be resumed."""
        self._interrupt = why
        if self._running is not None:
            self._running.cancel()

    def hand_over(self, why: str, end: float | None = None) -> None:
        """Begin nothing more: once what runs has ended, leave a run that the next driver goes on with.

        Args:
            why: in words.
            end: when this driver must have ended, if that is known (Unix seconds).
        """
        self.stages.hand_over(why)
        if end is not None:
            self.walltime.ends(end)
            self._watch_walltime()

    def _watch_walltime(self, *, stop: bool = False) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        left_s = float("inf") if stop else self.walltime.left_s
        events = asyncio.get_running_loop()
        self._alarm = events.call_later(max(0.0, left_s), self._time_is_up) if left_s < float("inf") else None

    def _time_is_up(self) -> None:
        stage, iteration = self.session.progress.stage, self.session.progress.iteration
        self._cut_off = True
        why = f"the walltime is over, in {stage or 'the end'} of iteration {iteration}"
        if not self.walltime.worked:
            why += ", and nothing was completed in it: ask for more"
        self.interrupt(str(self.stages.tries.handing_over(why)))

    def _check_time(self, iteration: int, stage: str) -> None:
        """Do not begin what cannot end.

        Raises:
            NoTimeError: there is no time left for that stage.
        """
        expected_s = self.session.progress.expected_s(stage)
        if expected_s is not None:
            expected_s += self._settled_s
        if why := self.walltime.refusal(f"the {stage} of iteration {iteration}", expected_s):
            raise self.stages.tries.handing_over(why)

    async def aclose(self) -> None:
        """Let go of the engine; idempotent."""
        await self.stages.engine.close()

    def take_back(self) -> None:
        """What was yielded last has reached nobody: left now, it is yielded again when the run goes on."""
        self._unseen = True

    async def _iteration(self, iteration: int) -> None:
        """Whatever of this iteration has no record."""
        stages, progress = self.stages, self.session.progress
        stages.recall(iteration)
        damages = 0
        while "merge" not in progress.stages:
            if "collect" not in progress.stages:
                await stages.collect(iteration)
            self._check_time(iteration, "merge")
            if not await stages.merge(iteration):
                damages += 1
                if damages > _MOST_DAMAGES:
                    raise TaskError(
                        f"shards of iteration {iteration} were found damaged {damages} times",
                        hint="check the file system",
                    )
        if "update" not in progress.stages:
            self._check_time(iteration, "update")
            await stages.update(iteration)
            self.walltime.worked = True
        if self.workflow.criterion is not None and "check" not in progress.stages:
            self._check_time(iteration, "check")
            await stages.check(iteration, self.workflow.criterion.work)
            self.walltime.worked = True
        began = time.monotonic()
        await self.session.settle()  # nobody is told of what could still be lost
        self._settled_s = time.monotonic() - began

    def _close(self, iteration: int) -> None:
        failpoints.hit("iteration-done")
        if self.session.progress.extended:  # before that is forgotten
            self._retain(iteration - 1, sweep=True)
        self.session.record("checkpoint", iteration=iteration)
        failpoints.hit("checkpoint-recorded")
        self.stages.tries.forget(iteration)
        self._retain(iteration, sweep=False, behind=True)

    def _retain(self, iteration: int, *, sweep: bool, behind: bool = False) -> None:
        """Remove what need not stay after ``iteration``; all iterations are looked at where retention may have changed.

        That is once the next one is done, or nothing is left to do: there may be ten thousand folders to look at.
        """
        run, progress = self.session.run, self.session.progress
        leaving = retention.plan(run, self.workflow, progress, iteration, sweep=sweep)
        remove = partial(self._remove, leaving, asyncio.get_running_loop())
        if behind:
            self.session.first(remove)
        else:
            remove()

    def _remove(self, leaving: retention.Leaving, events: asyncio.AbstractEventLoop) -> None:
        """Remove it, in any thread; observers are told of problems in the event loop's."""
        for problem in retention.remove(leaving, before=self._sync):
            text = f"{problem}; `{self.session.run.command('gc')}` removes it later"
            with suppress(RuntimeError):  # a program's event loop has ended: nobody is left to be told
                events.call_soon_threadsafe(self.session.warn, text)

    def _sync(self) -> None:
        """Nothing goes before its record is on the disk; where nothing goes, the group commit is early enough."""
        self.session.journal.sync()
        failpoints.hit("checkpoint-synced")

    async def _end(self, verdict: Verdict) -> None:
        if self.session.closed:  # a program's event loop ended while it waited, and all this with it
            return
        progress = self.session.progress
        try:
            await self._abandon(f"the run ended: {verdict.state}")
        finally:  # a program's event loop may end while it waits
            if progress.end is None:
                failpoints.hit("ending")
                facts = {"state": verdict.state, "reason": verdict.reason, "iteration": progress.iteration}
                self.session.record("end", **facts, **({"walltime": True} if self._cut_off else {}))
                failpoints.hit("end-recorded")
                self.session.journal.sync()

    async def _abandon(self, why: str) -> None:
        await self.stages.abandon(why, _DISK_S if self._interrupt else None)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` so that :meth:`interrupt` can end it."""
        self._running = asyncio.create_task(work)
        try:
            await self._running
        except NoTimeError as stop:  # a task that raised the SystemExit itself would end the event loop
            raise Interrupted(str(stop)) from None
        except asyncio.CancelledError:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
            if self._interrupt:
                raise Interrupted(self._interrupt) from None
            await self._end(Verdict("stopped", "cancelled"))
            raise
        finally:
            self._running = None
