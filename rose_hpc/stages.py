"""The four stages, each from its attempts to its record; :mod:`rose_hpc.loop` decides which is next."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rose_hpc import attempts, publishing
from rose_hpc.attempts import Place
from rose_hpc.errors import EngineError, RunError, TaskError, TaskTimeoutError
from rose_hpc.execution.attempt import VALUE_BYTES, Attempt, Outcome
from rose_hpc.execution.engine import Call, Engine
from rose_hpc.session import Session
from rose_hpc.workflow import Environment, Work, Workflow

#: how often a rank or stage begins anew because the node it ran on was lost
_MOST_LOSSES = 3

T = TypeVar("T")
#: the arguments a program's configuration adds for a stage in an iteration: positional ones and keywords
Arguments = Callable[[str, int], tuple[tuple[Any, ...], dict[str, Any]]]


class _LostError(TaskError):
    """The node was lost, not the work: it may succeed on another."""


class Stages:
    """One driver's stages.

    Args:
        session: the run, owned.
        workflow: what it consists of.
        engine: what carries attempts out.
        learner: which of a program's learners this is.
        arguments: the program's own arguments for its tasks.
    """

    def __init__(
        self,
        session: Session,
        workflow: Workflow,
        engine: Engine,
        *,
        learner: int = 0,
        arguments: Arguments | None = None,
    ) -> None:
        self.session = session
        self.workflow = workflow
        self.engine = engine
        self.learner = learner
        self.arguments = arguments or (lambda stage, iteration: ((), {}))
        self.values: dict[str, Any] = {}  # this iteration's, by environment or stage
        self._numbers: Counter[tuple[int, str, str]] = Counter()
        self._limit = asyncio.Semaphore(workflow.max_concurrent or engine.width or 2**31)

    def recall(self, iteration: int) -> None:
        """The values of what is done already; where one could not be kept, the iteration is done again."""
        progress = self.session.progress
        records = [*progress.ranks.values(), *progress.stages.values()]
        if any(record.get("opaque") for record in records):
            self.session.record(
                "redo", iteration=iteration, reason="a task's value was not JSON, so no record holds it"
            )
        elif records and not self.values:
            done = {**progress.ranks, **{k: r for k, r in progress.stages.items() if k in ("update", "check")}}
            self.values = {name: record.get("value") for name, record in done.items()}

    # -- collect -------------------------------------------------------------------------------------------------------

    async def collect(self, iteration: int) -> None:
        begun: set[str] = set()
        todo = [e for e in self.workflow.environments if e.name not in self.session.progress.ranks]
        tasks = {
            e.name: asyncio.create_task(self._survive_losses(partial(self._rank, iteration, e, begun))) for e in todo
        }
        try:
            pending = set(tasks.values())
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
                if any(task.exception() for task in done if not task.cancelled()):
                    # what runs may end, so that its work is kept; what has not begun does not begin
                    for name in tasks.keys() - begun:
                        tasks[name].cancel()
        except asyncio.CancelledError:
            for task in tasks.values():
                task.cancel()
            await asyncio.wait(tasks.values())
            raise
        failures = [error for task in tasks.values() if not task.cancelled() and (error := task.exception())]
        if failures:
            raise failures[0]
        if any(task.cancelled() for task in tasks.values()):  # not by us, for nothing has failed
            raise EngineError(
                "the engine was shut down while environments ran", hint=self.session.run.command("resume")
            )
        ranks = self.session.progress.ranks.values()
        rows, size = sum(record["rows"] for record in ranks), sum(record["bytes"] for record in ranks)
        self.session.record("stage", iteration=iteration, stage="collect", rows=rows, bytes=size)

    async def _rank(self, iteration: int, environment: Environment, begun: set[str]) -> None:
        name, work = environment.name, environment.work

        def on_start() -> None:
            begun.add(name)
            self.session.started(iteration, "collect", name)

        async with self._limit:
            place = self._place(iteration, "collect", name)
            argv, call = await self._prepare(place, work, ())
            attempt = attempts.collect(place, environment, self.workflow.cwd, argv)
            outcome, value = await self._carry_out(place, attempt, call, on_start)
        info = outcome.info or {"rows": 0, "bytes": 0, "digest": None, "columns": {}}
        columns = _signature(info["columns"])
        if (other := self._other_columns(columns)) is not None:
            if (first := other[0].removeprefix("environment ")) in self.session.progress.ranks:
                # who came first need not be right: both run again
                self.session.record("redo", iteration=iteration, environment=first, reason=f"unlike {name}")
            await self._fail(place, outcome, f"wrote {_difference(columns, other[1])} of {other[0]}", "shard")
        if outcome.info is not None:
            target = self.session.run.shard(iteration, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            publishing.publish(place.shard, target)
        nans = int(sum(_flat(info["columns"].get("rewards", {}).get("stats", {}).get("nans", 0))))
        self.session.record(
            "rank",
            iteration=iteration,
            stage="collect",
            environment=name,
            attempt=place.number,
            node=outcome.node,
            rows=info["rows"],
            bytes=info["bytes"],
            digest=info["digest"],
            seconds=outcome.seconds,
            max_rss_mb=outcome.max_rss_mb,
            **({"columns": columns} if columns else {}),
            **({"nan_rewards": nans} if nans else {}),
            **self._keep(name, work, outcome, value),
        )

    def _other_columns(self, columns: dict[str, str]) -> tuple[str, dict[str, str]] | None:
        """Who wrote other columns before, and which; None where these fit."""
        progress = self.session.progress
        merges = [(f"the bank of iteration {k}", r.get("columns")) for k, r in list(progress.merges.items())[-1:]]
        ranks = [(f"environment {name}", record.get("columns")) for name, record in progress.ranks.items()]
        for who, known in (*merges, *ranks):
            if known and columns and known != columns:
                return who, known
        return None

    # -- merge, update, check ------------------------------------------------------------------------------------------

    async def merge(self, iteration: int) -> bool:
        """Merge the shards; False when some were damaged: they are set aside, and their environments run again."""
        return await self._survive_losses(partial(self._merge, iteration))

    async def update(self, iteration: int) -> None:
        """Update the policy."""
        await self._survive_losses(partial(self._update, iteration))

    async def check(self, iteration: int, work: Work) -> None:
        """Measure the policy."""
        await self._survive_losses(partial(self._check, iteration, work))

    async def _merge(self, iteration: int) -> bool:
        run, progress = self.session.run, self.session.progress
        names = [e.name for e in self.workflow.environments if progress.ranks[e.name]["digest"]]
        if not names:
            self.session.record("stage", iteration=iteration, stage="merge", skipped="no shards", rows=0, bytes=0)
            return True
        place = self._place(iteration, "merge")
        workers = self.workflow.workers or min(4, self.engine.cores or 4)
        shards = {run.shard(iteration, name): progress.ranks[name]["digest"] for name in names}
        attempt = attempts.merge(place, self.workflow, shards, min(workers, self.engine.cores or workers))
        self.session.started(iteration, "merge")
        outcome, _ = await self.engine.run(attempt)
        if outcome.reason == "damaged":
            for name, path in zip(names, shards, strict=True):
                if str(path) in outcome.paths:
                    self._set_aside(iteration, name, path, outcome.message)
            return False
        if not outcome.ok or outcome.info is None:
            await self._fail(place, outcome, outcome.message, outcome.reason)
            raise AssertionError("unreachable")
        publishing.publish(place.shard, run.bank(iteration))
        facts = {key: outcome.info[key] for key in ("rows", "bytes", "digest")}
        columns = _signature(outcome.info["columns"])
        if returns := outcome.info.get("returns"):
            known = {e.name: dict(e.parameters) for e in self.workflow.environments}
            facts["returns"] = {name: {"parameters": known.get(name, {}), **of} for name, of in returns.items()}
        self.session.record(
            "stage", iteration=iteration, stage="merge", **facts, seconds=outcome.seconds, columns=columns
        )
        return True

    def _set_aside(self, iteration: int, name: str, path: Path, message: str) -> None:
        aside = path.with_name(f"{path.name}.damaged-{len(list(path.parent.glob(path.name + '.damaged-*')))}")
        try:
            path.rename(aside)
            where, what = self.session.run.relative(aside), f"is damaged and was set aside as {aside}"
        except FileNotFoundError:
            where, what = None, "is gone"
        self.session.record("damaged", iteration=iteration, environment=name, path=where, reason=message)
        self.session.warn(f"the shard of {name} {what}: the environment runs again")

    async def _update(self, iteration: int) -> None:
        run = self.session.run
        place, work = self._place(iteration, "update"), self.workflow.update
        argv, call = await self._prepare(
            place, work, tuple(self.values.get(e.name) for e in self.workflow.environments)
        )
        for source, copy in ((run.policy, place.policy), (run.state, place.state)):
            await asyncio.to_thread(publishing.copy_tree, source(iteration - 1) if iteration else None, copy)
        if iteration:
            await self._check_policy(iteration - 1, place.policy)
        attempt = attempts.update(place, self.workflow, self.session.progress, argv)
        outcome, value = await self._carry_out(place, attempt, call)
        run.iteration(iteration).mkdir(exist_ok=True)
        state = await asyncio.to_thread(publishing.publish_tree, place.state, run.state(iteration))
        policy = await asyncio.to_thread(publishing.publish_tree, place.policy, run.policy(iteration))
        self.session.record(
            "stage",
            iteration=iteration,
            stage="update",
            seconds=outcome.seconds,
            node=outcome.node,
            policy=policy,
            state=state,
            **self._keep("update", work, outcome, value),
        )

    async def _check(self, iteration: int, work: Work) -> None:
        place = self._place(iteration, "check")
        argv, call = await self._prepare(place, work, (self.values.get("update"),))
        attempt = attempts.check(place, self.workflow, work, self.session.progress, argv)
        outcome, value = await self._carry_out(place, attempt, call)
        try:
            reward = _number(value) if work.is_function else _last_number(outcome.stdout)
        except ValueError as error:
            await self._fail(place, outcome, str(error), "value")
            raise AssertionError("unreachable") from error
        kept = self._keep("check", work, outcome, value) if work.is_function else {}
        self.session.record("stage", iteration=iteration, stage="check", seconds=outcome.seconds, reward=reward, **kept)

    async def _check_policy(self, iteration: int, folder: Path) -> None:
        """Whether a policy is still the one that was committed: nothing else would tell, where all write as root."""
        committed = self.session.progress.updates[iteration]["policy"]["digest"]
        if (await asyncio.to_thread(publishing.tree_facts, folder))["digest"] != committed:
            raise RunError(
                f"{self.session.run.policy(iteration)} is not what the update of iteration {iteration} left: "
                "an environment or a check has changed it",
                hint="bring it back from a copy, and let only the update write to task.policy",
            )

    # -- one attempt ---------------------------------------------------------------------------------------------------

    def _place(self, iteration: int, stage: str, environment: str = "") -> Place:
        self._numbers[iteration, stage, environment] += 1
        number = self._numbers[iteration, stage, environment]
        seed, epoch = self.session.progress.run["seed"], self.session.ownership.epoch
        deadline = self.engine.deadline
        return Place(self.session.run, seed, self.learner, iteration, stage, environment, epoch, number, deadline)

    async def _survive_losses(self, once: Callable[[], Awaitable[T]]) -> T:
        """``once``, and once more for each node that is lost under it, while there are others."""
        for _ in range(_MOST_LOSSES):
            try:
                return await once()
            except _LostError as error:
                if not self.engine.has_nodes:
                    raise
                self.session.warn(f"{error.message}; it begins anew on another node")
        return await once()

    async def _prepare(self, place: Place, work: Work, values: tuple[Any, ...]) -> tuple[tuple[str, ...], Call | None]:
        """The command to execute, or what to call."""
        args, kwargs = self.arguments(place.stage, place.iteration)
        if work.function is not None:
            return (), (work.function, (*args, *values), kwargs)
        argv = await work.command(*args, *values, **kwargs) if work.make_command else work.argv
        self.session.check_scripts(argv, self.workflow.cwd)
        return argv, None

    async def _carry_out(
        self, place: Place, attempt: Attempt, call: Call | None, on_start: Callable[[], None] | None = None
    ) -> tuple[Outcome, Any]:
        """An attempt that must go well."""
        if on_start is None:
            self.session.started(place.iteration, place.stage)
        outcome, value = await self.engine.run(attempt, call, on_start)
        if not outcome.ok:
            await self._fail(place, outcome, outcome.message, outcome.reason)
        return outcome, value

    async def _fail(self, place: Place, outcome: Outcome, message: str, reason: str) -> None:
        """Record the failure of an attempt, and raise it."""
        for path in (place.shard, place.policy, place.state):
            await asyncio.to_thread(publishing.remove, path)
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
        kind = {"timeout": TaskTimeoutError, "lost": _LostError}.get(reason, TaskError)
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

    def _keep(self, name: str, work: Work, outcome: Outcome, value: Any) -> dict[str, Any]:
        """Remember the value of a program's task; the fields that make the journal remember it."""
        if work.argv:
            return {}  # a configuration's commands pass values on in files
        self.values[name] = value if work.is_function else outcome.stdout
        if self.values[name] is None:
            return {}
        return {"value": self.values[name]} if _json_like(self.values[name]) else {"opaque": True}


def _json_like(value: Any) -> bool:
    """Whether a record can hold ``value`` and give it back equal."""
    try:
        text = json.dumps(value, allow_nan=False)
        return len(text.encode()) <= VALUE_BYTES and bool(json.loads(text) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _number(value: Any) -> float:
    """A check function's reward: its number, or the ``metric_value`` of its dict (as in ROSE)."""
    try:
        number = float(value["metric_value"] if isinstance(value, dict) else value)
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"returned {value!r}, which is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"returned {number}, which is not finite")
    return number


def _last_number(stdout: str) -> float:
    """A check command's reward: the last line of its output."""
    last = next((line.strip() for line in reversed(stdout.splitlines()) if line.strip()), "")
    if not last:
        raise ValueError("printed nothing, and its last line must be its number")
    try:
        number = float(last)
    except ValueError:
        raise ValueError(f"printed {last[:80]!r} as its last line, which is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"printed {last[:80]!r} as its last line, which is not finite")
    return number


def _signature(columns: Any) -> dict[str, str]:
    """Columns as a record holds them: ``{"observations": "float32[4]"}``."""
    return {
        name: f"{column['dtype']}[{','.join(map(str, column['shape']))}]" if column["shape"] else str(column["dtype"])
        for name, column in sorted(columns.items())
    }


def _difference(columns: dict[str, str], known: dict[str, str]) -> str:
    for name in sorted(columns.keys() | known.keys()):
        if name not in columns:
            return f"no column {name}, unlike the {known[name]}"
        if name not in known:
            return f"a column {name} that is not among those"
        if columns[name] != known[name]:
            return f"column {name} as {columns[name]}, unlike the {known[name]}"
    return "other columns than those"


def _flat(value: Any) -> list[float]:
    return [item for part in value for item in _flat(part)] if isinstance(value, list) else [value]
