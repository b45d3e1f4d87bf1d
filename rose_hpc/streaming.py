"""Merging while shards still come: what has its record is checked and copied while other environments run.

How many rows every environment leaves must be known beforehand (:mod:`rose_hpc.experience.stream`): as many as the last
time, in the first iteration as many as the first of them. A guess that turns out wrong, an environment that is missing,
a shard that is damaged or made anew, a process that dies: whatever happens, what was copied is dropped, and the
shards are merged when all are there, as they are without streaming. So only the time that it takes depends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rose_hpc import attempts, failpoints, publishing
from rose_hpc.attempts import Place
from rose_hpc.errors import EngineError, RunError
from rose_hpc.execution import merging
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.merging import Way
from rose_hpc.tries import Tries

#: bytes of all shards together from which it is worth its messages
WORTH_STREAMING = 64 * 1024 * 1024


@dataclass(frozen=True)
class Reduced:
    """How a reduction ended, whose bank is at ``place.shard``; ``facts`` of its record.

    Attributes:
        synced: whether the bank is on the disk.
    """

    place: Place
    outcome: Outcome
    facts: dict[str, Any]
    synced: bool = True


@dataclass
class _Bank:
    """One that is being filled.

    Attributes:
        rows: that each shard will have, by environment, in the bank's order.
        copied: the digests of those that are in it.
        asked: how often it was asked for more.
    """

    iteration: int
    place: Place
    rows: dict[str, int]
    copied: dict[str, str] = field(default_factory=dict)
    asked: int = 0


class Streaming:
    """One driver's."""

    def __init__(self, tries: Tries) -> None:
        self.tries = tries
        self.session = tries.session
        self.workflow = tries.workflow
        self._bank: _Bank | None = None
        self._copying: asyncio.Task[None] | None = None
        self._given_up: int | None = None  # the iteration that is merged in one go
        self._rows: dict[str, int] = {}  # of the last iteration's shards
        self._steady = True

    def look(self, iteration: int) -> None:
        """Shards have their records: copy them, if others are still waited for."""
        busy = self._copying is not None and not self._copying.done()
        if busy or self._given_up == iteration or self.workflow.way not in ("auto", "stream"):
            return
        if self._bank is None and not self._begin(iteration):
            return
        self._copying = asyncio.create_task(self._copy())

    async def end(self, iteration: int, names: Sequence[str]) -> Reduced | None:
        """The bank of these environments' shards; None where it has to be made in one go.

        Raises:
            EngineError: when the engine itself failed.
        """
        await self._settle()
        bank = self._bank
        if bank is None or bank.iteration != iteration or list(bank.rows) != list(names) or not self._fits(bank):
            await self._drop()
            return None
        ranks, asked = self.session.progress.ranks, self.workflow.way
        left = sum(ranks[name]["bytes"] for name in names if name not in bank.copied)
        engine, file_system = self.tries.engine, merging.file_system_of(self.session.run.path)
        way = merging.choose_way(
            left, engine.free_cores, "auto" if asked == "auto" else "threads", self.workflow.workers, file_system
        )
        if way.name != "threads":  # so much is left that all nodes are better at it
            await self._drop()
            return None
        attempt = self._attempt(bank, names, Way("stream", 1, way.threads, way.cores))
        outcome, _ = await engine.run(merging.phase_of(attempt, "stream-end"))
        reduced = Reduced(bank.place, outcome, {"way": "stream", "streamed": len(bank.copied)})
        if outcome.ok:
            self._bank = None
            await asyncio.to_thread(_remove, Path(f"{bank.place.shard}.parts"))
        else:
            await self._drop()
        return reduced if outcome.ok or outcome.reason == "damaged" else None

    def note(self, names: Sequence[str]) -> None:
        """These shards were merged: the next ones may be as long, if these were as the last."""
        ranks = self.session.progress.ranks
        rows = {name: ranks[name]["rows"] for name in names}
        self._steady = all(self._rows.get(name, count) == count for name, count in rows.items())
        self._rows = rows

    async def abandon(self) -> None:
        """Nothing is copied any more."""
        if self._copying is not None:
            self._copying.cancel()
        await self._settle()
        await self._drop()

    def _begin(self, iteration: int) -> bool:
        """Begin a bank, if it is worth it and can be known what it will be like."""
        first = next((rank for rank in self.session.progress.ranks.values() if rank["rows"]), None)
        if first is None or not self._steady or not self.tries.engine.carries_attempts:
            return False
        names = [e.name for e in self.workflow.environments if not self._rows or e.name in self._rows]
        rows = {name: self._rows.get(name, int(first["rows"])) for name in names}
        size = first["bytes"] / first["rows"] * sum(rows.values())
        if self.workflow.way == "auto" and size < WORTH_STREAMING:
            self._given_up = iteration  # so that a thousand shards do not make it be seen again
            return False
        self._bank = _Bank(iteration, self.tries.place(iteration, "merge"), rows)
        return True

    async def _copy(self) -> None:
        """Whatever comes, until there is nothing new, or nobody is waited for any more."""
        while (bank := self._bank) is not None:
            ranks = self.session.progress.ranks
            left = {name: rank["digest"] for name, rank in ranks.items() if rank["digest"] and name in bank.rows}
            new = {name: digest for name, digest in left.items() if name not in bank.copied}
            fits = self._fits(bank)
            if fits and (not new or ranks.keys() >= bank.rows.keys()):
                return
            if not fits or not await self._add(bank, new):
                self._given_up = bank.iteration
                await self._drop()

    async def _add(self, bank: _Bank, new: dict[str, str]) -> bool:
        """Have shards copied; whether they were."""
        bank.asked += 1
        order = list(bank.rows)
        attempt = self._attempt(bank, list(new), Way("stream"))
        failpoints.hit("stream-asked")
        numbers = [order.index(name) for name in new]
        rows = list(bank.rows.values())
        try:
            asked = merging.phase_of(attempt, "stream", f"-{bank.asked}", rows=rows, numbers=numbers)
            outcome, _ = await self.tries.engine.run(asked)
        except EngineError:
            return False  # it is told by whoever needs the engine next
        failpoints.hit("stream-answered")
        bank.copied |= new
        return outcome.ok

    def _attempt(self, bank: _Bank, names: Sequence[str], way: Way) -> Attempt:
        run, ranks = self.session.run, self.session.progress.ranks
        shards = {run.shard(bank.iteration, name): ranks[name]["digest"] for name in names}
        return attempts.merge(bank.place, self.workflow, shards, way)

    def _fits(self, bank: _Bank) -> bool:
        """Whether the records are as expected, and what was copied is still what they say."""
        ranks = self.session.progress.ranks
        left = {name: rank for name, rank in ranks.items() if rank["digest"]}
        return all(rank["rows"] == bank.rows.get(name) for name, rank in left.items()) and all(
            name in left and left[name]["digest"] == digest for name, digest in bank.copied.items()
        )

    async def _settle(self) -> None:
        """Wait until nothing is copied."""
        if (copying := self._copying) is None:
            return
        await asyncio.wait([copying])
        self._copying = None
        if copying.cancelled():
            await self._drop()
        else:
            copying.result()

    async def _drop(self) -> None:
        bank, self._bank = self._bank, None
        if bank is not None:
            await asyncio.to_thread(_remove, Path(bank.place.shard), Path(f"{bank.place.shard}.parts"))


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(RunError):  # the next driver clears what is left
            publishing.remove(path)
