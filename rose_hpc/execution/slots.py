"""Cores, GPUs and memory by node, given out in the order of asking: the pure core of :mod:`rose_hpc.execution.pool`.

Each request goes to the node with the fewest free cores that are enough for it, so that wide ones find room. Nobody
overtakes: who waits at the head for a whole node gets it as soon as it is empty.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from rose_hpc.errors import UsageError
from rose_hpc.machine import Shape


@dataclass(frozen=True)
class Request:
    """What is asked for on each of ``nodes``, which are whole ones if they are several; ``memory_mb`` 0: not said.

    Nodes whose names are in ``avoid`` are not given while there are enough others that could be.
    """

    cores: int
    nodes: int = 1
    gpus: float = 0.0
    avoid: frozenset[str] = frozenset()
    memory_mb: int = 0  # whole numbers: what is given back is all there again

    @property
    def is_cores_alone(self) -> bool:
        """Whether cores of one node are all that it asks for."""
        return self.nodes == 1 and not self.gpus and not self.memory_mb


@dataclass(frozen=True)
class Grant:
    """What was given: the nodes, cores and memory on each, and the ids of the GPUs with the share of each."""

    nodes: tuple[Hashable, ...]
    cores: int
    gpus: tuple[str, ...] = ()
    share: float = 0.0
    memory_mb: int = 0


class Gpus:
    """The GPUs of one node, of which fractions can be given out.

    Args:
        ids: as ``CUDA_VISIBLE_DEVICES`` names them.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.free = dict.fromkeys(ids, 1.0)

    def choose(self, gpus: float) -> tuple[tuple[str, ...], float] | None:
        """The ids for ``gpus``, and the share of each; None when there are not enough.

        Less than one is a share of a single GPU, of the one with the least room for it; more is whole ones.
        """
        if not gpus:
            return (), 0.0
        share = gpus if gpus < 1 else 1.0
        able = sorted((free, i) for i, (_, free) in enumerate(self.free.items()) if free >= share - 1e-9)
        count = 1 if gpus < 1 else math.ceil(gpus - 1e-9)  # ranks times a share
        names = list(self.free)
        return (tuple(names[i] for _, i in able[:count]), share) if len(able) >= count else None

    def change(self, ids: Sequence[str], share: float) -> None:
        """Give back (positive) or take (negative) a share of each."""
        for name in ids:
            self.free[name] = round(self.free[name] + share, 9)


class Slots:
    """Cores by node, given out in the order they were asked for.

    Nothing here looks at all nodes for each of many requests: there may be a thousand of the one and a hundred
    thousand of the others.
    """

    def __init__(self) -> None:
        self.free: dict[Hashable, int] = {}
        self.total: dict[Hashable, int] = {}
        self._memory_mb: dict[Hashable, float] = {}  # of each node; infinite where nobody knows
        self._free_mb: dict[Hashable, float] = {}
        self._gpus: dict[Hashable, Gpus | None] = {}
        self._most = 0  # cores of the largest node
        self._keys: dict[Hashable, tuple[str, int]] = {}  # each node's name, and a number where names are alike
        self._order: list[tuple[int, str, int, Hashable]] = []  # by free cores, then by key
        self._numbers = itertools.count()
        self._able: dict[Request, list[Hashable]] = {}  # the nodes that could hold a part of each that was asked for
        self._waiting: deque[tuple[Request, asyncio.Future[Grant]]] = deque()

    def add(self, node: Hashable, cores: int, gpus: Sequence[str] | None = None, memory_mb: float = math.inf) -> None:
        """A node joins; ``gpus`` None: nobody knows its GPUs, so they are not counted."""
        self.remove(node)
        self._able.clear()
        self.free[node] = self.total[node] = cores
        self._memory_mb[node] = self._free_mb[node] = memory_mb
        self._gpus[node] = None if gpus is None else Gpus(gpus)
        self._most = max(self._most, cores)
        self._keys[node] = (str(node), next(self._numbers))
        bisect.insort(self._order, self._place(node))
        self._next()

    def remove(self, node: Hashable) -> None:
        """A node is gone; who waits for more than the others have is told.

        Those that hold its cores find out by themselves.
        """
        if node not in self.free:
            return
        del self._order[bisect.bisect_left(self._order, self._place(node))]
        self._able.clear()
        for known in (self.free, self.total, self._memory_mb, self._free_mb, self._gpus, self._keys):
            del known[node]
        self._most = max(self.total.values(), default=0)
        for request, turn in self._waiting:
            if self.total and not self._possible(request) and not turn.done():  # without any, whoever lost them tells
                turn.set_exception(self._never(request))
        self._next()  # who stood behind those may fit

    def fail(self, error: Exception) -> None:
        """Tell everyone who waits."""
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)
        self._waiting.clear()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def take_now(self, request: Request) -> Grant | None:
        """Take what is asked for, if it is free and nobody waits."""
        if self._waiting or (grant := self._grant(request)) is None:
            return None
        self._hold(grant)
        return grant

    async def take(self, request: Request) -> Grant:
        """Wait until what is asked for is free, and take it.

        Raises:
            UsageError: there will never be so much.
        """
        if self.total and not self._possible(request):
            raise self._never(request)
        if (grant := self.take_now(request)) is not None:
            return grant
        turn: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self.give(turn.result())
            self._next()  # who stood behind it may fit
            raise

    def give(self, grant: Grant) -> None:
        """Give it back; what was of a node that is gone is gone."""
        self._hold(grant, sign=1)
        self._next()

    def _hold(self, grant: Grant, sign: int = -1) -> None:
        for node in grant.nodes:
            if node not in self.free:
                continue
            del self._order[bisect.bisect_left(self._order, self._place(node))]
            self.free[node] += sign * (grant.cores if len(grant.nodes) == 1 else self.total[node])
            bisect.insort(self._order, self._place(node))
            self._free_mb[node] += sign * grant.memory_mb
            if grant.gpus and (gpus := self._gpus[node]) is not None:
                gpus.change(grant.gpus, sign * grant.share)

    def _place(self, node: Hashable) -> tuple[int, str, int, Hashable]:
        return (self.free[node], *self._keys[node], node)

    def _next(self) -> None:
        while self._waiting:
            request, turn = self._waiting[0]
            if not turn.done():
                if (grant := self._grant(request)) is None:
                    return
                self._hold(grant)
                turn.set_result(grant)
            self._waiting.popleft()

    def _grant(self, request: Request) -> Grant | None:
        """Where a request fits now."""
        avoided = self._avoided(request) if request.avoid else ()
        if request.nodes > 1:
            able = set(self._able_nodes(request)).difference(avoided)
            idle = [
                (name, number, node)
                for free, name, number, node in self._order
                if free == self.total[node] and node in able
            ]
            nodes = tuple(node for *_, node in sorted(idle)[: request.nodes])
            return Grant(nodes, request.cores, memory_mb=request.memory_mb) if len(nodes) == request.nodes else None
        for index in range(bisect.bisect_left(self._order, (request.cores,)), len(self._order)):
            node = self._order[index][-1]
            gpus = self._gpus[node]
            chosen = ((), 0.0) if gpus is None else gpus.choose(request.gpus)
            if chosen is not None and self._free_mb[node] >= request.memory_mb and node not in avoided:
                return Grant((node,), request.cores, *chosen, request.memory_mb)
        return None

    def shapes(self) -> list[Shape]:
        """What the nodes have."""
        return [self._shape(node) for node in self.total]

    def _shape(self, node: Hashable) -> Shape:
        gpus = self._gpus[node]
        return Shape(self.total[node], self._memory_mb[node], math.inf if gpus is None else len(gpus.free))

    def _possible(self, request: Request) -> bool:
        """Whether it would fit if nothing else ran."""
        if request.is_cores_alone:
            return request.cores <= self._most
        return len(self._able_nodes(request)) >= request.nodes

    def _able_nodes(self, request: Request) -> list[Hashable]:
        """The nodes that could hold a part of it."""
        if (able := self._able.get(request)) is None:
            part = Shape(request.cores, request.memory_mb, request.gpus)
            able = self._able[request] = [node for node in self.total if self._shape(node).holds(part)]
        return able

    def _avoided(self, request: Request) -> Collection[Hashable]:
        """The nodes it is not to have; none where there are not enough without them."""
        able = self._able_nodes(request)
        avoided = {node for node in able if str(node) in request.avoid}
        return avoided if len(able) - len(avoided) >= request.nodes else ()

    def _never(self, request: Request) -> UsageError:
        most = max(self.total.values(), default=0)
        if request.nodes == 1 and request.cores > most:
            return UsageError(
                f"a task asks for {request.cores} cores on one node, and the largest has {most}",
                hint="lower its cores_per_rank, or ask for larger nodes",
            )
        asked = {"cores_per_rank": f"{request.cores} cores"}
        if request.memory_mb:
            asked["mem_gb_per_rank"] = f"{request.memory_mb / 1024:.4g} GB of memory"
        if request.gpus:
            asked["gpus_per_rank"] = f"{request.gpus:g} GPUs"
        able = f"{len(self._able_nodes(request))} of {len(self.total)} nodes"
        one = request.nodes == 1
        where = "a node" if one else f"each of {request.nodes} nodes"
        return UsageError(
            f"a task asks for {', '.join(asked.values())} on {where}, and {able} can give that",
            hint=f"lower its {' or '.join(asked if one else ['ranks', *asked])}, or ask for larger nodes",
        )
