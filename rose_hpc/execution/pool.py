"""Supervisors and their cores: which attempt runs where, and when.

Attempts are served in the order they came; each goes to the node with the fewest cores that are enough for it, so that
wide ones find room. A pure core (:class:`Slots`) decides; :class:`Pool` acts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

from rose_hpc.errors import EngineError, UsageError
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.client import Answer, Client, OnStart


class Slots:
    """Cores by node, given out in the order they were asked for."""

    def __init__(self) -> None:
        self.free: dict[Hashable, int] = {}
        self.total: dict[Hashable, int] = {}
        self._waiting: deque[tuple[int, asyncio.Future[Hashable]]] = deque()

    def add(self, node: Hashable, cores: int) -> None:
        """A node joins."""
        self.free[node] = self.total[node] = cores
        self._next()

    def remove(self, node: Hashable) -> None:
        """A node is gone; who waits for more than any other node has is told.

        Those that hold its cores find out by themselves.
        """
        self.free.pop(node, None)
        self.total.pop(node, None)
        for cores, turn in list(self._waiting):
            if not any(cores <= total for total in self.total.values()) and not turn.done():
                turn.set_exception(_never(cores, self.total))
        self._waiting = deque(entry for entry in self._waiting if not entry[1].done())
        self._next()  # who stood behind those may fit

    def fail(self, error: Exception) -> None:
        """Tell everyone who waits."""
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)
        self._waiting.clear()

    async def take(self, cores: int) -> Hashable:
        """Wait until some node has ``cores`` free, take them, and say which.

        Raises:
            UsageError: no node has so many.
        """
        if self.total and not any(cores <= total for total in self.total.values()):
            raise _never(cores, self.total)
        turn: asyncio.Future[Hashable] = asyncio.get_running_loop().create_future()
        self._waiting.append((cores, turn))
        self._next()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give(turn.result(), cores)
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._next()
            raise

    def give(self, node: Hashable, cores: int) -> None:
        """Give them back; those of a node that is gone are gone."""
        if node in self.free:
            self.free[node] += cores
            self._next()

    def _next(self) -> None:
        while self._waiting:
            cores, turn = self._waiting[0]
            fitting = [(free, str(node), node) for node, free in self.free.items() if free >= cores]
            if not fitting:
                return
            self._waiting.popleft()
            if turn.done():
                continue
            node = min(fitting, key=lambda entry: entry[:2])[2]
            self.free[node] -= cores
            turn.set_result(node)


def _never(cores: int, total: dict[Hashable, int]) -> UsageError:
    most = max(total.values(), default=0)
    return UsageError(
        f"a task asks for {cores} cores on one node, and the largest has {most}",
        hint="lower its cores_per_rank, or ask for larger nodes",
    )


class Pool:
    """The supervisors of an engine.

    Args:
        max_concurrent: attempts at once on each supervisor, whatever their cores; None: as its cores allow.
    """

    def __init__(self, max_concurrent: int | None = None) -> None:
        self.max_concurrent = max_concurrent
        self.slots = Slots()
        self.failure: EngineError | None = None

    @property
    def cores(self) -> int:
        """Of the largest node: what a single task may have."""
        return max(self.slots.total.values(), default=0)

    @property
    def width(self) -> int:
        """Of all nodes."""
        return sum(self.slots.total.values())

    def add(self, client: Client, cores: int) -> None:
        """A supervisor joins."""
        self.slots.add(client, self.max_concurrent or cores)

    def remove(self, client: Client) -> None:
        """A supervisor is gone."""
        self.slots.remove(client)

    def fail(self, error: EngineError) -> None:
        """Nobody is left to do anything: everyone who waits is told, and everyone who comes."""
        self.failure = self.failure or error
        self.slots.fail(self.failure)

    async def run(self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None) -> Answer:
        """Carry out an attempt when and where its cores are free."""
        if self.failure is not None:
            raise self.failure
        weight = 1 if self.max_concurrent else attempt.cores
        client = await self.slots.take(weight)
        assert isinstance(client, Client)  # noqa: S101 - only add() puts nodes there
        try:
            return await client.run(attempt, payload, on_start)
        finally:
            self.slots.give(client, weight)
