"""One try at a rank or stage, from its place to its outcome: what all stages share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from rose_hpc import failpoints, publishing
from rose_hpc.attempts import Place
from rose_hpc.errors import TaskError, TaskTimeoutError
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.engine import Call, Engine
from rose_hpc.results import json_like
from rose_hpc.session import Session
from rose_hpc.workflow import Work, Workflow

#: how often a rank or stage begins anew because the node it ran on was lost
_MOST_LOSSES = 3

T = TypeVar("T")
#: the arguments a program's configuration adds for a stage in an iteration: positional ones and keywords
Arguments = Callable[[str, int], tuple[tuple[Any, ...], dict[str, Any]]]


class LostError(TaskError):
    """The node was lost, not the work: it may succeed on another."""


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
        limit: asyncio.Semaphore | None = None,
    ) -> None:
        self.session = session
        self.workflow = workflow
        self.engine = engine
        self.learner = learner
        self.arguments = arguments or (lambda stage, iteration: ((), {}))
        self.limit = limit or asyncio.Semaphore(workflow.max_concurrent or engine.width or 2**31)
        self.values: dict[str, Any] = {}  # this iteration's, by environment or stage
        self._numbers: Counter[tuple[int, str, str]] = Counter()

    def place(self, iteration: int, stage: str, environment: str = "") -> Place:
        """The next attempt's."""
        self._numbers[iteration, stage, environment] += 1
        number = self._numbers[iteration, stage, environment]
        seed, epoch = self.session.progress.run["seed"], self.session.ownership.epoch
        deadline = self.engine.deadline
        return Place(self.session.run, seed, self.learner, iteration, stage, environment, epoch, number, deadline)

    async def survive_losses(self, once: Callable[[], Awaitable[T]]) -> T:
        """``once``, and once more for each node that is lost under it, while there are others."""
        for _ in range(_MOST_LOSSES):
            try:
                return await once()
            except LostError as error:
                if not self.engine.has_nodes:
                    raise
                self.session.warn(f"{error.message}; it begins anew on another node")
        return await once()

    async def prepare(self, place: Place, work: Work, values: tuple[Any, ...]) -> tuple[tuple[str, ...], Call | None]:
        """The command to execute, or what to call."""
        args, kwargs = self.arguments(place.stage, place.iteration)
        if work.function is not None:
            return (), (work.function, (*args, *values), kwargs)
        argv = await work.command(*args, *values, **kwargs) if work.make_command else work.argv
        self.session.check_scripts(argv, self.workflow.cwd)
        return argv, None

    async def carry_out(
        self, place: Place, attempt: Attempt, call: Call | None, on_start: Callable[[], None] | None = None
    ) -> tuple[Outcome, Any]:
        """An attempt that must go well."""
        if on_start is None:
            self.session.started(place.iteration, place.stage)
        outcome, value = await self.engine.run(attempt, call, on_start)
        if not outcome.ok:
            await self.fail(place, outcome, outcome.message, outcome.reason)
        return outcome, value

    async def fail(self, place: Place, outcome: Outcome, message: str, reason: str) -> None:
        """Record the failure of an attempt, and raise it."""
        for path in (place.shard, place.policy, place.state):
            await asyncio.to_thread(publishing.remove, path)
        failpoints.hit("failure-cleared")
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
        )
        who = self._who(place)
        if reason in ("exit", "signal") and (said := outcome.tail.rstrip().rpartition("\n")[2].strip()):
            message += f": {said[:200]}"  # what it said last is mostly why
        it = "" if reason == "spawn" else "it "  # whose message has a subject of its own
        kind = {"timeout": TaskTimeoutError, "lost": LostError}.get(reason, TaskError)
        error = kind(
            f"{who} failed in iteration {place.iteration}: {it}{message}" if reason != "merge" else message,
            hint=f"see {place.log}, then `{self.session.run.command('resume')}`" + self._more_time(place, reason),
        )
        if outcome.tail:
            error.add_note(outcome.tail)
        raise error

    def _who(self, place: Place) -> str:
        """Whose attempt it is, for people."""
        if not place.environment:
            return f"the {place.stage}"
        parameters = next(e.parameters for e in self.workflow.environments if e.name == place.environment)
        values = ", ".join(f"{key}={value}" for key, value in parameters.items())
        return f"environment {place.environment}" + (f" ({values[:100]})" if values else "")

    def _more_time(self, place: Place, reason: str) -> str:
        """How a configuration's run gets more of it: the file it came from is read no more."""
        if reason != "timeout" or not self.workflow.update.argv:
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
        return {"value": self.values[name]} if json_like(self.values[name]) else {"opaque": True}
