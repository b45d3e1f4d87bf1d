"""The first stage: every environment runs, and leaves a shard; or as many as ``[merge]`` says are enough.

An environment is one rank at a time. One that is late, because the iteration went on without it, runs on while its
shard can still be taken; when it comes, it stands for that environment in the iteration that is being collected then.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from rose_hpc import attempts, failpoints
from rose_hpc.accepting import Collected, accept
from rose_hpc.errors import EngineError, RoseHpcError, TaskError
from rose_hpc.execution.attempt import BRIEF_S
from rose_hpc.tries import Tries
from rose_hpc.workflow import Environment

#: it is looked so often what the time still allows, where nothing else happens
_LOOK_S = 1.0


@dataclass
class _Flight:
    """An environment under way; ``begun``: it runs now, and neither queues nor waits for its next try."""

    iteration: int
    task: asyncio.Task[Collected]
    begun: bool = False


@dataclass
class _Round:
    """One collecting.

    Attributes:
        failures: environments it has given up.
        fatal: why nothing more is begun, and the run stops once what runs has ended.
        refusal: why there is no time for more, in words.
        refused: environments that were not begun therefore.
        looked: when it was last seen who has no time left (monotonic).
    """

    iteration: int
    since: float = field(default_factory=time.monotonic)
    failures: dict[str, TaskError] = field(default_factory=dict)
    fatal: BaseException | None = None
    refusal: str = ""
    refused: set[str] = field(default_factory=set)
    looked: float = 0.0


class Collect:
    """One driver's collecting.

    Args:
        tries: its tries.
        accepted: called with the iteration whenever shards of it may have got their records.
    """

    def __init__(self, tries: Tries, accepted: Callable[[int], None] = lambda iteration: None) -> None:
        self.tries = tries
        self._accepted = accepted
        self.session = tries.session
        self.workflow = tries.workflow
        self.patience = tries.workflow.patience
        self._flights: dict[str, _Flight] = {}
        self._landed: list[str] = []
        self._somebody = asyncio.Event()

    async def run(self, iteration: int) -> None:
        """Run every environment that has no record in this iteration.

        Raises:
            TaskError: too few are left; what ran was let end, so that its work is kept.
            NoTimeError: there is no time left for the others.
        """
        done, round_ = self.session.progress.ranks, _Round(iteration)
        self.discard_lost()
        for environment in self.workflow.environments:
            if environment.name not in done and environment.name not in self._flights:
                self._begin(iteration, environment)
        self._accepted(iteration)
        while not self._is_over(round_):
            self._refuse(round_)
            if not self._landed:
                await self._wait(self._look_s(round_))
            landed, self._landed = self._landed, []
            await self._land(round_, landed)
        if round_.fatal is not None:
            raise round_.fatal
        if not self._is_enough(round_):
            raise self.tries.handing_over(round_.refusal)
        self._close(round_)

    def look(self) -> None:
        """Look at once what may still be begun."""
        self._somebody.set()

    async def _wait(self, seconds: float) -> None:
        """Until somebody has ended, for at most so long; ``wait_for`` would make a task each time."""
        self._somebody.clear()
        alarm = asyncio.get_running_loop().call_later(seconds, self._somebody.set)
        try:
            await self._somebody.wait()
        finally:
            alarm.cancel()

    async def abandon(self, why: str) -> None:
        """End whoever is under way; of those who are late it is recorded."""
        flights, self._flights = self._flights, {}
        await self._end(flights.values())
        for name in sorted(flights.keys() & self.session.progress.late.keys()):
            self._discard(name, flights[name], why)

    def discard_lost(self) -> None:
        """Record what a driver before this one was still waiting for: it ended with that driver."""
        for name, iteration in list(self.session.progress.late.items()):
            if name not in self._flights:
                self.session.record("discarded", iteration=iteration, environment=name, reason="its driver ended")

    # -- one environment -----------------------------------------------------------------------------------------------

    def _begin(self, iteration: int, environment: Environment) -> None:
        name = environment.name
        task = asyncio.create_task(self.tries.persist(partial(self._once, iteration, environment)))
        self._flights[name] = _Flight(iteration, task)
        task.add_done_callback(lambda _: self._on_landed(name))

    def _on_landed(self, name: str) -> None:
        self._landed.append(name)
        self._somebody.set()

    async def _once(self, iteration: int, environment: Environment) -> Collected:
        name, work = environment.name, environment.work
        flight = self._flights[name]

        def on_start() -> None:
            flight.begun = True
            self.session.started(iteration, "collect", name)

        async with self.tries.limit:
            place = self.tries.place(iteration, "collect", name)
            argv, call = await self.tries.prepare(place, work, ())
            failpoints.hit("rank-prepared")
            took_s = self.session.progress.expected_s("collect", name)
            brief = place.number == 1 and took_s is not None and took_s < BRIEF_S
            progress, nodes = self.session.progress, self.tries.engine.nodes
            policy = attempts.policy_to_copy(self.workflow, progress, iteration, nodes)
            attempt = attempts.collect(place, environment, self.workflow.cwd, argv, brief=brief, policy=policy)
            try:
                return Collected(place, work, *await self.tries.carry_out(place, work, attempt, call, on_start))
            finally:
                flight.begun = False

    async def _land(self, round_: _Round, names: Iterable[str]) -> None:
        """Take what environments left that have ended, and note who has failed."""
        collected = [done for name in names if (done := self._ended(round_, name)) is not None]
        if not collected:
            return
        try:
            unlike = await self._accept(round_, collected)
        except RoseHpcError as error:
            unlike = [error]
            self.session.forgive()  # what has no record runs again; what waits for its record, or still comes, is kept
        for each in unlike:  # trying again, or going on without it, would hide that
            round_.fatal = round_.fatal or each
        if round_.fatal is None and any(done.outcome.info for done in collected):
            self._accepted(round_.iteration)

    async def _accept(self, round_: _Round, collected: Sequence[Collected]) -> Sequence[RoseHpcError]:
        """What has ended is kept, even if we are cancelled meanwhile."""
        accepting = accept(self.tries, round_.iteration, collected)
        if not any(done.outcome.info for done in collected):
            return await accepting  # which waits for nothing then: a task would cost more than it
        task = asyncio.create_task(accepting)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    def _ended(self, round_: _Round, name: str) -> Collected | None:
        """What an environment left, if it has."""
        flight = self._flights.get(name)
        if flight is None or not flight.task.done():
            return None  # it was ended by us, and perhaps begun anew since
        del self._flights[name]
        if flight.task.cancelled():
            if name not in round_.refused:  # not by us
                message = "the engine was shut down while environments ran"
                round_.fatal = round_.fatal or EngineError(message, hint=self.session.run.command("resume"))
            return None
        error = flight.task.exception()
        if error is None:
            return flight.task.result()
        if flight.iteration < round_.iteration and isinstance(error, TaskError):
            self._discard(name, flight, "it failed")
            self._begin(round_.iteration, next(e for e in self.workflow.environments if e.name == name))
        else:
            self._give_up(round_, name, error)
        return None

    def _give_up(self, round_: _Round, name: str, error: BaseException) -> None:
        """An environment has failed: whether the iteration goes on without it."""
        patience, everybody = self.patience, len(self.workflow.environments)
        misses = len({*self.session.progress.misses.get(name, ()), round_.iteration})
        if not isinstance(error, TaskError):
            round_.fatal = round_.fatal or error
            return
        round_.failures[name] = error
        if everybody - len(round_.failures) < (patience.min_environments or everybody):
            round_.fatal = round_.fatal or error
        elif misses >= patience.max_misses:
            text = f"{error.message}; it has failed in {misses} iterations in a row"
            round_.fatal = round_.fatal or TaskError(text, hint=error.hint)
        else:
            self.session.warn(f"{error.message}; iteration {round_.iteration} goes on without it")

    # -- all of them ---------------------------------------------------------------------------------------------------

    def _is_over(self, round_: _Round) -> bool:
        if round_.fatal is not None or (round_.refusal and not self._is_enough(round_)):
            return not self._flights
        return self._is_enough(round_)

    def _is_enough(self, round_: _Round) -> bool:
        """Whether the iteration can go on: all are here, or enough and the others have failed or are late."""
        here, patience = len(self.session.progress.ranks), self.patience
        if here + len(round_.failures) >= len(self.workflow.environments) or patience.deadline_s is None:
            return here + len(round_.failures) >= len(self.workflow.environments)
        late = time.monotonic() - round_.since >= patience.deadline_s
        return late and here >= (patience.min_environments or len(self.workflow.environments))

    def _look_s(self, round_: _Round) -> float:
        """How long nothing but the end of an environment can change anything."""
        if self.patience.deadline_s is None:
            return _LOOK_S
        left = self.patience.deadline_s - (time.monotonic() - round_.since)
        return min(_LOOK_S, left) if left > 0 else _LOOK_S

    def _refuse(self, round_: _Round) -> None:
        """End who has not begun and shall not, because the run stops or the time is too short for it."""
        walltime = self.tries.walltime
        pressing = round_.fatal is not None or walltime.told
        if not pressing and (walltime.left_s == math.inf or time.monotonic() - round_.looked < _LOOK_S):
            return  # not at each of a thousand ends
        round_.looked = time.monotonic()
        for name, flight in self._flights.items():
            if flight.begun or name in round_.refused or flight.task.done():
                continue
            if round_.fatal is None:
                expected_s = self.session.progress.expected_s("collect", name)
                refusal = walltime.refusal(f"environment {name}", expected_s)
                if not refusal:
                    continue
                round_.refusal = round_.refusal or refusal
            round_.refused.add(name)
            flight.task.cancel()

    def _close(self, round_: _Round) -> None:
        """Record that the iteration goes on, and without whom."""
        absent = {name: self._why_absent(name, flight) for name, flight in self._flights.items()}
        missing = {e.name: absent.get(e.name, "failed") for e in self.workflow.environments}
        ranks = self.session.progress.ranks
        missing = {name: why for name, why in missing.items() if name not in ranks}
        self.session.record(
            "stage",
            iteration=round_.iteration,
            stage="collect",
            rows=sum(record["rows"] for record in ranks.values()),
            bytes=sum(record["bytes"] for record in ranks.values()),
            seconds=round(time.monotonic() - round_.since, 4),
            **({"missing": missing} if missing else {}),
        )
        failpoints.hit("collect-recorded")
        for name, why in absent.items():
            flight = self._flights[name]
            useless = round_.iteration + 1 - flight.iteration > self.patience.max_policy_lag
            if why == "late" and not useless:
                continue
            del self._flights[name]
            flight.task.cancel()  # its cores are free once it has ended: who needs them waits for that
            if name in self.session.progress.late:
                self._discard(name, flight, f"it was late, and merge.max_policy_lag is {self.patience.max_policy_lag}")

    def _why_absent(self, name: str, flight: _Flight) -> str:
        if flight.begun:
            return "late"
        return "failed" if self.tries.failures(flight.iteration, "collect", name) else "waiting"

    def _discard(self, name: str, flight: _Flight, why: str) -> None:
        """Record that nothing of a late environment is used, and how many rows that were, if it had ended."""
        ended = flight.task.done() and not flight.task.cancelled() and flight.task.exception() is None
        info = flight.task.result().outcome.info if ended else None
        rows = {} if info is None else {"rows": info["rows"]}
        self.session.record("discarded", iteration=flight.iteration, environment=name, reason=why, **rows)

    async def _end(self, flights: Iterable[_Flight]) -> None:
        tasks = [flight.task for flight in flights]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # looked at, so that asyncio does not complain that nobody did
