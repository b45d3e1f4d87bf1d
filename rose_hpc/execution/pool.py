"""Supervisors and their cores: which attempt runs where, and when.

:class:`~rose_hpc.execution.slots.Slots` decides, in the order of asking; :class:`Pool` acts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from rose_hpc.errors import EngineError
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.client import SENT_BACK, Answer, Client, OnStart
from rose_hpc.execution.lanes import Lanes
from rose_hpc.execution.slots import Grant, Request, Slots

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

    def add(self, client: Client, cores: int, gpus: Sequence[str] | None = None, memory_gb: float = math.inf) -> None:
        """A supervisor joins; ``gpus``: the ids of its GPUs, None where nobody knows; ``memory_gb``: of its node."""
        memory_mb = memory_gb if memory_gb == math.inf else int(memory_gb * 1024)
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
        slots = self.slots
        request = _ONE if self.max_concurrent else plan_request(attempt, slots.total.values(), slots.memory_mb.values())
        if attempt.brief and request.is_cores_alone and not request.avoid:
            answer = await self._in_lane(request, attempt, payload, on_start)
            if answer[0].reason != SENT_BACK:
                return answer
        grant = await self.slots.take(request)
        lead, *others = (node for node in grant.nodes if isinstance(node, Client))
        try:
            placed = _placed(attempt, grant, [lead, *others])
            running = lead.run(placed, payload, on_start)
            return await (running if not others else _on_all(placed, running, others))
        finally:
            self.slots.give(grant)

    async def _in_lane(self, request: Request, attempt: Attempt, payload: bytes, on_start: OnStart | None) -> Answer:
        if (lanes := self._lanes.get(request.cores)) is None:
            lanes = self._lanes[request.cores] = Lanes(self.slots, request)
        lane = await lanes.enter()
        try:
            return await lane.client.run(attempt, payload, on_start, lane.number)
        finally:
            lanes.leave(lane)


def plan_request(attempt: Attempt, nodes: Collection[int], memory_mb: Collection[float] = ()) -> Request:
    """What an attempt takes of nodes with so many cores and so much memory (not counted where it is not given).

    That is a part of one, or, for ranks that one cannot hold, whole ones. Ranks over several nodes are spread evenly:
    ``ceil(ranks / nodes)`` on each, the last having fewer.
    """
    one_node = _one_node(attempt.cores, attempt.gpus, tuple(attempt.avoid), attempt.memory_gb)
    if attempt.ranks == 1:
        return one_node
    each, each_mb = attempt.cores // attempt.ranks, attempt.memory_gb * 1024 / attempt.ranks
    if attempt.cores <= max(nodes, default=0) and one_node.memory_mb <= max(memory_mb, default=math.inf):
        return one_node
    on_one = min(nodes, default=0) // each if each else 0
    if each_mb:
        on_one = int(min(on_one, min(memory_mb, default=math.inf) // each_mb))
    if not on_one:
        return one_node
    count = math.ceil(attempt.ranks / on_one)
    ranks = math.ceil(attempt.ranks / count)
    return Request(ranks * each, count, avoid=one_node.avoid, memory_mb=math.ceil(ranks * each_mb))


@lru_cache  # a thousand attempts ask for the same
def _one_node(cores: int, gpus: float, avoid: tuple[str, ...], memory_gb: float) -> Request:
    return Request(cores, gpus=gpus, avoid=frozenset(avoid), memory_mb=math.ceil(memory_gb * 1024))


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
