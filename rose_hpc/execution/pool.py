"""Supervisors and their cores: which attempt runs where, and when.

:class:`~rose_hpc.execution.slots.Slots` decides, in the order of asking; :class:`Pool` acts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from rose_hpc.errors import EngineError, UsageError
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.client import SENT_BACK, Answer, Client, OnStart
from rose_hpc.execution.lanes import Lanes
from rose_hpc.execution.slots import Grant, Request, Slots
from rose_hpc.machine import Shape

_ONE = Request(1)


class Pool:
    """The supervisors of an engine.

    Args:
        max_concurrent: attempts at once on each supervisor, whatever their cores; None: as its cores allow.
    """

    def __init__(self, max_concurrent: int | None = None) -> None:
        self.max_concurrent = max_concurrent
        self.slots = Slots()
        self.failure: EngineError | None = None
        self._lanes: dict[int, Lanes] = {}  # by the cores of each

    @property
    def cores(self) -> int:
        """Of the largest node: what a single task may have."""
        return max(self.slots.total.values(), default=0)

    @property
    def width(self) -> int:
        """Of all nodes."""
        return sum(self.slots.total.values())

    def add(self, client: Client, cores: int, gpus: Sequence[str] | None = None, memory_mb: float = math.inf) -> None:
        """A supervisor joins; ``gpus``: the ids of its GPUs, None where nobody knows; ``memory_mb``: of its node."""
        self.slots.add(client, self.max_concurrent or cores, gpus, memory_mb)

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
        request = _ONE if self.max_concurrent else plan_request(attempt, self.slots.shapes)
        if attempt.brief and request.is_cores_alone and not request.avoid:
            answer = await self._in_lane(request, attempt, payload, on_start)
            if answer[0].reason != SENT_BACK:
                return answer
        grant = await self._take(attempt, request)
        lead, *others = (node for node in grant.nodes if isinstance(node, Client))
        try:
            placed = _placed(attempt, grant, [lead, *others])
            running = lead.run(placed, payload, on_start)
            return await (running if not others else _on_all(placed, running, others))
        finally:
            self.slots.give(grant)

    async def _take(self, attempt: Attempt, request: Request) -> Grant:
        try:
            return await self.slots.take(request)
        except UsageError:  # nodes were lost meanwhile, perhaps: those that are left may hold it otherwise
            if self.max_concurrent or (again := plan_request(attempt, self.slots.shapes)) == request:
                raise
        return await self.slots.take(again)

    async def _in_lane(self, request: Request, attempt: Attempt, payload: bytes, on_start: OnStart | None) -> Answer:
        if (lanes := self._lanes.get(request.cores)) is None:
            lanes = self._lanes[request.cores] = Lanes(self.slots, request)
        lane = await lanes.enter()
        try:
            return await lane.client.run(attempt, payload, on_start, lane.number)
        finally:
            lanes.leave(lane)


def plan_request(attempt: Attempt, shapes: Callable[[], Collection[Shape]]) -> Request:
    """What an attempt takes of nodes of such shapes: a part of one, or, for ranks that one cannot hold, whole ones.

    Ranks over several nodes are spread evenly over as few as hold them: ``ceil(ranks / nodes)`` on each, the last
    having fewer.

    Raises:
        UsageError: the nodes do not hold its ranks.
    """
    one_node = _one_node(attempt.cores, attempt.gpus, tuple(attempt.avoid), attempt.memory_mb)
    if attempt.ranks == 1:
        return one_node
    each = Shape(*(whole / attempt.ranks for whole in (attempt.cores, attempt.memory_mb, attempt.gpus)))
    holds = sorted((shape.holds(each) for shape in shapes()), reverse=True)
    for count, ranks in enumerate(holds, 1):
        here = math.ceil(attempt.ranks / count)
        if here <= ranks:
            cores, memory_mb = int(here * each.cores), math.ceil(here * each.memory_mb)
            whole = Request(cores, count, here * each.gpus, one_node.avoid, memory_mb)
            return one_node if count == 1 else whole
    if not holds:
        return one_node  # nobody has joined yet
    raise UsageError(
        f"a program asks for {attempt.ranks} ranks of {each.cores:g} cores"
        + (f", {each.memory_mb / 1024:.4g} GB of memory" if each.memory_mb else "")
        + (f", {each.gpus:g} GPUs" if each.gpus else "")
        + f", spread evenly, and the {len(holds)} nodes hold {' + '.join(map(str, holds[:20]))}",
        hint="lower its ranks or what each takes, or ask for more nodes",
    )


@lru_cache  # a thousand attempts ask for the same
def _one_node(cores: int, gpus: float, avoid: tuple[str, ...], memory_mb: int) -> Request:
    return Request(cores, gpus=gpus, avoid=frozenset(avoid), memory_mb=memory_mb)


def _placed(attempt: Attempt, grant: Grant, clients: Sequence[Client]) -> Attempt:
    """The attempt with what was given to it."""
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(grant.gpus)} if grant.gpus else {}
    if not gpus and attempt.ranks == 1:
        return attempt
    return replace(attempt, env={**attempt.env, **gpus}, nodes=tuple(client.node for client in clients))


async def _on_all(attempt: Attempt, running: Coroutine[Any, Any, Answer], others: Sequence[Client]) -> Answer:
    """An attempt on several nodes, which ends with any of them."""
    work = asyncio.create_task(running)
    losses = [asyncio.create_task(client.gone.wait()) for client in others]
    try:
        await asyncio.wait([work, *losses], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        lost = ", ".join(client.node for client in others if client.gone.is_set())
        message = f"was lost: it ran on {lost} too"
        return Outcome(attempt.id, ok=False, reason="lost", message=message, node=attempt.nodes[0]), b""
    finally:
        for loss in losses:
            loss.cancel()
        work.cancel()
        with suppress(asyncio.CancelledError, EngineError):
            await work
