"""Several learners in one run: k loops over one engine, each with a run directory of its own inside the run's.

The run's own journal says who the learners are, how each ended and how the whole did; all else is in the learners' own,
which are run directories like any other. A learner that converges or fails stops no other. What a learner yields is
looked at before it goes on, so that a configuration that is set then holds from its next iteration on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing
from typing import Any, TypeVar

from rose_hpc import rundir
from rose_hpc.errors import EngineError, Interrupted, RoseHpcError
from rose_hpc.inner import Inner
from rose_hpc.loop import LEFT, Loop, Verdict
from rose_hpc.refusals import words_of
from rose_hpc.session import Session, clear_scratch
from rose_hpc.walltime import Walltime

T = TypeVar("T")
_WORDS = {
    "converged": "converged",
    "max_iterations": "reached max_iterations",
    "failed": "failed",
    "stopped": "were stopped",
}


def open_learners(
    session: Session, facts: Sequence[Mapping[str, Any]], engine: str | None, stack: ExitStack
) -> list[Session]:
    """The sessions of a run's learners, with their first records; ``stack`` closes them.

    Args:
        session: the run's own.
        facts: what each learner's run record says, by number.
        engine: what the driver runs its work on.
    """
    sessions = []
    for number, each in enumerate(facts):
        run = session.run.learner(number)
        if not run.journal.exists():
            rundir.create(str(each["name"]), run.path)
        observers = [observer.learner(str(each["label"])) for observer in session.observers]
        learner = Session(run, observers, within=session)
        stack.callback(learner.close)
        clear_scratch(run)
        learner.begin({**each, "learner": number}, engine=engine)
        sessions.append(learner)
    return sessions


class Population:
    """The learners of one run, as their driver holds them.

    Args:
        session: the run's own, owned, with its first records.
        loops: one for each learner.
        labels: what people call them.
    """

    def __init__(self, session: Session, loops: Sequence[Loop], labels: Sequence[str]) -> None:
        self.session = session
        self.loops = loops
        self.labels = labels
        self._ended: set[int] = set()
        self._failures: list[BaseException] = []
        self._interrupted: Interrupted | None = None

    @property
    def done(self) -> int:
        """Iterations that are complete, of all learners."""
        return sum(map(_done, self.loops))

    @property
    def walltime(self) -> Walltime:
        """Of the driver, and so of every learner."""
        return self.loops[0].walltime

    def interrupt(self, why: str) -> None:
        """End what runs, of all learners, and leave a run that can be resumed."""
        for loop in self.loops:
            loop.interrupt(why)

    def hand_over(self, why: str, end: float | None = None) -> None:
        """Begin nothing more, of any learner: see :meth:`~rose_hpc.loop.Loop.hand_over`."""
        for loop in self.loops:
            loop.hand_over(why, end)

    async def aclose(self) -> None:
        """Let go of the engine; idempotent."""
        for loop in self.loops:
            await loop.aclose()

    async def iterations(self) -> AsyncGenerator[int, None]:
        """Yield every iteration of every learner, as :meth:`~rose_hpc.loop.Loop.iterations` does of one."""
        async with aclosing(Inner(self.follow([Inner(loop.iterations()) for loop in self.loops]))) as iterations:
            async for iteration in iterations:
                yield iteration

    async def follow(self, sources: Sequence[Inner[T]]) -> AsyncGenerator[T, None]:
        """What the learners' ``sources`` yield, as it comes, until all have ended.

        Raises:
            Interrupted: the driver was told to stop.
            Exception: of the learner that failed first, once all have ended; its notes name the others.
        """
        waiting = {asyncio.create_task(_next(source)): number for number, source in enumerate(sources)}
        try:
            while waiting:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in waiting if task.done()]:
                    number = waiting.pop(task)
                    values, error = task.result()
                    for value in values:  # one, or none when it has ended
                        yield value
                        waiting[asyncio.create_task(_next(sources[number]))] = number
                    if not values:
                        self._note_end(number, error)
        except BaseException as error:
            await self._leave(waiting, sources, LEFT if isinstance(error, GeneratorExit) else "cancelled")
            raise
        finally:
            self._end()
        if self._interrupted is not None:
            raise self._interrupted
        if self._failures:
            raise self._failure()

    async def _leave(self, waiting: Mapping[_Next[T], int], sources: Sequence[Inner[T]], why: str) -> None:
        """Nobody asks any more: what runs is ended, and what nobody has seen will be yielded again."""
        for number in waiting.values():
            self.loops[number].interrupt(why)
        cancelled = False
        while not all(task.done() for task in waiting):
            try:
                await asyncio.wait(waiting)
            except asyncio.CancelledError:  # the event loop ends, and with it what each has under way
                cancelled = True
        for task, number in waiting.items():
            if not task.cancelled() and task.result()[0]:
                self.loops[number].take_back()
        async with AsyncExitStack() as all_of_them:  # though one of them cannot record how it ended
            for number, source in reversed([*enumerate(sources)]):
                all_of_them.push_async_callback(self._close_one, number, source)
        if cancelled:
            raise asyncio.CancelledError

    async def _close_one(self, number: int, source: Inner[T]) -> None:
        error: BaseException | None = None
        try:
            await source.aclose()
        except Exception as raised:
            error = raised
            raise
        finally:
            if number not in self._ended:
                self._note_end(number, error)

    def _note_end(self, number: int, error: BaseException | None) -> None:
        """A learner has ended."""
        self._ended.add(number)
        session, label = self.loops[number].session, self.labels[number]
        if isinstance(error, Interrupted):
            self._interrupted = error
        elif error is not None:
            if session.progress.end is None:  # the program's own error, or ours
                session.record("end", state="failed", reason=words_of(error), iteration=session.progress.iteration)
            self._failures.append(_named(error, label))
            if len(self._ended) < len(self.loops) and not isinstance(error, EngineError):  # which is everybody's
                self.session.warn(f"{_said(error)}; the other learners go on")
        if session.progress.end is None:  # its event loop has ended
            session.record("end", state="stopped", reason=LEFT, iteration=session.progress.iteration)
        end = session.progress.end or {}
        reached = {"iteration": session.progress.iteration, "reward": session.progress.reward}
        self.session.record("learner", learner=number, state=end["state"], reason=end["reason"], **reached)

    def _failure(self) -> BaseException:
        first, *others = self._failures
        for other in others:
            first.add_note(_said(other))
        return first

    def _end(self) -> None:
        """The whole has ended as its learners have."""
        for number in set(range(len(self.loops))) - self._ended:
            self._note_end(number, None)
        ends = [loop.session.progress.end or {} for loop in self.loops]
        verdict = whole([str(end["state"]) for end in ends])
        if self.session.progress.end is None:
            facts = {"state": verdict.state, "reason": verdict.reason, "iteration": max(map(_done, self.loops))}
            cut_off = any(end.get("walltime") for end in ends)
            self.session.record("end", **facts, **({"walltime": True} if cut_off else {}))
            self.session.journal.sync()


def _done(loop: Loop) -> int:
    return loop.done


def whole(states: Sequence[str]) -> Verdict:
    """How a run ended whose learners ended so: stopped if any was, else failed if any did, else as the least did."""
    of = Counter(states)
    state = next((each for each in ("stopped", "failed", "max_iterations") if of[each]), "converged")
    told = [f"{of[each]} {words}" for each, words in _WORDS.items() if of[each]]
    return Verdict(state, f"of {len(states)} learners {', '.join(told)}")


_Next = asyncio.Task[tuple[list[T], BaseException | None]]


async def _next(source: Inner[T]) -> tuple[list[T], BaseException | None]:
    """What it yields next; nothing when it has ended, and why if that was no orderly end.

    Not raised, because Interrupted would end the whole event loop from within a task.
    """
    try:
        return [await anext(source)], None
    except StopAsyncIteration:
        return [], None
    except (Exception, Interrupted) as error:  # noqa: BLE001 - it is told when all learners have ended
        return [], error


def _named(error: BaseException, label: str) -> BaseException:
    """The error, with the learner whose it is in its message."""
    if isinstance(error, RoseHpcError):
        error.message = f"learner {label}: {error.message}"
    else:
        error.add_note(f"this was learner {label}")
    return error


def _said(error: BaseException) -> str:
    return error.message if isinstance(error, RoseHpcError) else words_of(error)
