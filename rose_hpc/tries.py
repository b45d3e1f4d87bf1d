"""One try at a rank or stage, from its place to its outcome, and whether there is another: what all stages share."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any, TypeVar

from rose_hpc import failpoints, publishing
from rose_hpc.attempts import Place
from rose_hpc.errors import RunError, TaskError, TaskTimeoutError
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.engine import Call, Engine
from rose_hpc.patience import again_s
from rose_hpc.quick import Quick
from rose_hpc.results import json_like
from rose_hpc.session import Session
from rose_hpc.slurm.allocation import driver_end
from rose_hpc.walltime import NoTimeError, Walltime
from rose_hpc.workflow import Work, Workflow

#: how often a rank or stage begins anew because the node it ran on was lost
_MOST_LOSSES = 3

T = TypeVar("T")
#: the arguments a program's configuration adds for a stage in an iteration: positional ones and keywords
Arguments = Callable[[str, int], tuple[tuple[Any, ...], dict[str, Any]]]
#: entered by each environment while it runs
Limit = AbstractAsyncContextManager[None]


class LostError(TaskError):
    """The node was lost, not the work: it may succeed on another."""


class _AgainError(Exception):
    """It failed, and is tried again after a while."""

    def __init__(self, after_s: float) -> None:
        super().__init__(after_s)
        self.after_s = after_s


class Tries:
    """One driver's tries.

    Args:
        session: the run, owned.
        workflow: what it consists of.
        engine: what carries attempts out.
        learner: which of a program's learners, or of a population, this is.
        arguments: the program's own arguments for its tasks.
        limit: how many environments run at once, shared with the other learners of a population; None: as the workflow
            says.
    """

    def __init__(
        self,
        session: Session,
        workflow: Workflow,
        engine: Engine,
        *,
        learner: int = 0,
        arguments: Arguments | None = None,
        limit: Limit | None = None,
    ) -> None:
        self.session = session
        self.workflow = workflow
        self.engine = engine
        self.learner = learner
        self.arguments = arguments or (lambda stage, iteration: ((), {}))
        self.walltime = Walltime(driver_end(engine.deadline, os.environ))
        most = workflow.max_concurrent or engine.width
        self.limit: Limit = limit or (asyncio.Semaphore(most) if most else nullcontext())
        self._opaque: set[str] = set()  # whose values no record holds, which was told
        self.quick = Quick()  # for small work with files
        self.values: dict[str, Any] = {}  # this iteration's, by environment or stage
        self._numbers: Counter[tuple[int, str, str]] = Counter()
        self._failures: Counter[tuple[int, str, str]] = Counter()
        self._failed_on: dict[tuple[int, str, str], set[str]] = {}

    def place(self, iteration: int, stage: str, environment: str = "") -> Place:
        """The next attempt's."""
        what = (iteration, stage, environment)
        self._numbers[what] += 1
        return Place(
            self.session.run,
            self.session.progress.run["seed"],
            self.learner,
            *what,
            self.session.ownership.epoch,
            self._numbers[what],
            self.walltime.deadline,
            tuple(sorted(self._failed_on.get(what, ()))),
        )

    def failures(self, iteration: int, stage: str, environment: str = "") -> int:
        """How many of its attempts have failed under this driver."""
        return self._failures[iteration, stage, environment]

    def handing_over(self, why: str) -> NoTimeError:
        """What to raise when the run is to be handed over to the next driver."""
        return NoTimeError(f"{why}; go on with `{self.session.run.command('resume')}`")

    def forget(self, iteration: int) -> None:
        """``iteration`` is over: nothing but who is still late for it is tried again."""
        self.values.clear()
        first = iteration + 1 - self.workflow.patience.max_policy_lag
        for known in (self._numbers, self._failures, self._failed_on):
            for what in [what for what in known if what[0] < first]:
                del known[what]

    async def persist(self, once: Callable[[], Awaitable[T]]) -> T:
        """``once``, again for each node that is lost under it while there are others, and as its retries say."""
        losses = 0
        while True:
            try:
                return await once()
            except LostError as error:
                losses += 1
                if losses > _MOST_LOSSES or not self.engine.has_nodes:
                    raise
                self.session.warn(f"{error.message}; it begins anew")
            except _AgainError as again:
                await asyncio.sleep(again.after_s)

    async def prepare(self, place: Place, work: Work, values: tuple[Any, ...]) -> tuple[tuple[str, ...], Call | None]:
        """The command to execute, or what to call."""
        args, kwargs = self.arguments(place.stage, place.iteration)
        if work.function is not None:
            return (), (work.function, (*args, *values), kwargs)
        argv = await work.command(*args, *values, **kwargs) if work.make_command else work.argv
        self.session.check_scripts(argv, self.workflow.cwd)
        return argv, None

    async def carry_out(
        self,
        place: Place,
        work: Work,
        attempt: Attempt,
        call: Call | None,
        on_start: Callable[[], None] | None = None,
    ) -> tuple[Outcome, Any]:
        """An attempt that must go well."""
        if on_start is None:
            self.session.started(place.iteration, place.stage)
        outcome, value = await self.engine.run(attempt, call, on_start)
        if outcome.notice:
            self.session.warn(outcome.notice)
        if not outcome.ok:
            await self.fail(place, outcome, outcome.message, outcome.reason, work)
        return outcome, value

    async def fail(self, place: Place, outcome: Outcome, message: str, reason: str, work: Work | None = None) -> None:
        """Record the failure of an attempt, and raise it; of ``work`` that has retries left, for :meth:`persist`."""
        for path in (place.shard, place.policy, place.state):
            with suppress(RunError):  # why the attempt failed is what matters; the next driver clears what is left
                await asyncio.to_thread(publishing.remove, path)
        failpoints.hit("failure-cleared")
        again_s = self._again_s(place, outcome.node, work) if reason != "lost" and work is not None else None
        self.session.record(
            "attempt",
            iteration=place.iteration,
            stage=place.stage,
            environment=place.environment,
            attempt=place.number,
            node=outcome.node,
            reason=reason,
            message=message,
            exit_code=outcome.exit_code,
            seconds=outcome.seconds,
            **({} if again_s is None else {"again_s": again_s}),
        )
        if again_s is not None:
            raise _AgainError(again_s)
        raise self._error(place, outcome, message, reason)

    def _again_s(self, place: Place, node: str, work: Work) -> float | None:
        """After how many seconds it is tried again, and not on that node if there are others; None: it is not."""
        what = (place.iteration, place.stage, place.environment)
        self._failures[what] += 1
        self._failed_on.setdefault(what, set()).update([node] if node else [])
        return again_s(self._failures[what], work.retries, work.retry_backoff_s)

    def _error(self, place: Place, outcome: Outcome, message: str, reason: str) -> TaskError:
        if reason in ("exit", "signal") and (said := outcome.tail.rstrip().rpartition("\n")[2].strip()):
            message += f": {said[:200]}"  # what it said last is mostly why
        it = "" if reason == "spawn" else "it "  # whose message has a subject of its own
        tries = self._failures[place.iteration, place.stage, place.environment]
        times = f", after {tries} tries:" if tries > 1 else ":"
        kind = {"timeout": TaskTimeoutError, "lost": LostError}.get(reason, TaskError)
        error = kind(
            f"{self.who(place.stage, place.environment)} failed in iteration {place.iteration}{times} {it}{message}"
            if reason != "merge"
            else message,
            hint=f"see {place.log}, then `{self.session.run.command('resume')}`" + self._more_time(place, reason),
        )
        if outcome.tail:
            error.add_note(outcome.tail)
        return error

    def who(self, stage: str, environment: str) -> str:
        """Whose attempt it is, for people."""
        if not environment:
            return f"the {stage}"
        parameters = next(e.parameters for e in self.workflow.environments if e.name == environment)
        values = ", ".join(f"{key}={value}" for key, value in parameters.items())
        return f"environment {environment}" + (f" ({values[:100]})" if values else "")

    def _more_time(self, place: Place, reason: str) -> str:
        """How a configuration's run gets more of it: the file it came from is read no more."""
        if reason != "timeout" or self.session.progress.run.get("source") != "config":
            return ""
        table = "environments" if place.environment else place.stage
        return f", with `--set {table}.timeout_s=SECONDS` for more time"

    def keep(self, name: str, work: Work, outcome: Outcome, value: Any) -> dict[str, Any]:
        """Remember the value of a program's task; the fields that make the journal remember it."""
        if work.argv:
            return {}  # a configuration's commands pass values on in files
        self.values[name] = value if work.is_function else outcome.stdout
        if self.values[name] is None:
            return {}
        if json_like(self.values[name]):
            return {"value": self.values[name]}
        if name not in self._opaque:
            self._opaque.add(name)
            what = f"{name} returned a {type(self.values[name]).__name__} that no record can hold"
            self.session.warn(f"{what}: an iteration that is cut off after it is done again from its beginning")
        return {"opaque": True}
