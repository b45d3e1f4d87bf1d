"""Brief attempts share cores: one after the other, each at its supervisor before the last one has ended.

An attempt costs a message there and one back, in which its cores do nothing. What is known to take about as long as
that is sent ahead: the cores of one attempt become a *lane*, in which several follow each other without the driver.
Nobody else loses by it: where somebody waits for cores, lanes run empty and give theirs back; and what stands in a lane
behind an attempt that is not brief after all is sent back by the supervisor, to wait for cores like everybody.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field

from rose_hpc.execution.client import Client
from rose_hpc.execution.slots import Grant, Request, Slots

#: so many are in a lane at most
DEEP = 8


@dataclass(eq=False)
class Lane:
    """The cores of one attempt, for several.

    Attributes:
        number: by which its supervisor tells it from others.
        inside: how many attempts are there.
    """

    grant: Grant
    client: Client
    number: int = field(default_factory=itertools.count(1).__next__)
    inside: int = 0


class Lanes:
    """The lanes for requests that are all alike.

    Args:
        slots: where their cores come from.
        request: the cores of each.
    """

    def __init__(self, slots: Slots, request: Request) -> None:
        self._slots = slots
        self._request = request
        self._lanes: list[dict[Lane, None]] = [{} for _ in range(DEEP + 1)]  # by how many are inside
        self._waiting: deque[asyncio.Future[Lane]] = deque()
        self._left = 0  # how many wait
        self._opening: asyncio.Task[None] | None = None
        self._asking = False  # it waits in the order of asking

    async def enter(self) -> Lane:
        """A place in a lane; :meth:`leave` gives it back.

        Raises:
            UsageError, EngineError: as :meth:`Slots.take` does.
        """
        if not self._waiting and (lane := self._place()) is not None:
            self._move(lane, 1)
            return lane
        turn: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._left += 1
        self._opening = self._opening or asyncio.create_task(self._open())
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self.leave(turn.result())
            raise
        finally:
            self._left -= 1
            if self._left == 0 and self._opening is not None:
                self._opening.cancel()

    def leave(self, lane: Lane) -> None:
        """One less; whoever waits is next, and an empty lane is none."""
        self._move(lane, -1)
        self._fill(lane, least=0)

    def _place(self) -> Lane | None:
        """Cores that nobody has, else the lane with the fewest."""
        if (grant := self._slots.take_now(self._request)) is not None:
            return self._lane(grant)
        if self._is_wanted():
            return None
        return next((lane for lanes in self._lanes[:DEEP] for lane in lanes if not lane.client.gone.is_set()), None)

    def _lane(self, grant: Grant) -> Lane:
        (client,) = grant.nodes
        assert isinstance(client, Client)  # noqa: S101 - the pool adds no other
        lane = Lane(grant, client)
        self._lanes[0][lane] = None
        return lane

    def _move(self, lane: Lane, change: int) -> None:
        del self._lanes[lane.inside][lane]
        lane.inside += change
        self._lanes[lane.inside][lane] = None

    def _is_wanted(self) -> bool:
        """Whether anybody but us waits for cores."""
        return self._slots.waiting > self._asking

    def _fill(self, lane: Lane, least: int) -> None:
        """Let in who waits, more than ``least`` only if nobody else wants the cores; close an empty lane."""
        while self._waiting and lane.inside < DEEP and not lane.client.gone.is_set():
            if lane.inside >= least and self._is_wanted():
                break
            turn = self._waiting.popleft()
            if not turn.done():
                self._move(lane, 1)
                turn.set_result(lane)
        if lane.inside == 0:
            del self._lanes[0][lane]
            self._slots.give(lane.grant)

    async def _open(self) -> None:
        """Ask for the cores of another lane, in the order of asking, as long as somebody waits."""
        try:
            while self._waiting:
                self._asking = True
                try:
                    grant = await self._slots.take(self._request)
                finally:
                    self._asking = False
                self._fill(self._lane(grant), least=1)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            waiting, self._waiting = self._waiting, deque()
            for turn in waiting:
                if not turn.done():
                    turn.set_exception(error)
        finally:
            self._opening = None
