"""Lanes: brief attempts share cores, in the order they came, and take them from nobody who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rose_hpc.errors import EngineError
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.behind import Behind
from rose_hpc.execution.client import Client
from rose_hpc.execution.lanes import DEEP, Lane, Lanes
from rose_hpc.execution.slots import Request, Slots

CORE = Request(1)


class Crowd:
    """Nodes of some cores, and tasks that enter lanes on them."""

    def __init__(self, *cores: int) -> None:
        self.slots = Slots()
        self.clients = [Client() for _ in cores]
        for client, count in zip(self.clients, cores, strict=True):
            self.slots.add(client, count)
        self.lanes = Lanes(self.slots, CORE)
        self.inside: dict[int, Lane] = {}
        self.order: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def enter(self, count: int) -> None:
        for number in range(len(self.tasks), len(self.tasks) + count):
            self.tasks[number] = asyncio.create_task(self._enter(number))
        await turn()

    async def _enter(self, number: int) -> None:
        self.inside[number] = await self.lanes.enter()
        self.order.append(number)

    async def leave(self, *numbers: int) -> None:
        for number in numbers:
            self.lanes.leave(self.inside.pop(number))
        await turn()

    async def empty(self) -> None:
        """Everybody leaves, until nobody is left; all cores are free then."""
        while self.inside:
            await self.leave(next(iter(self.inside)))
        assert self.slots.free == self.slots.total
        assert self.slots.waiting == 0


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run it; whatever it leaves behind is a failure."""

    async def main() -> None:
        await scenario()
        await turn()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_free_cores_come_first() -> None:
    """As long as there are free cores, nobody stands behind another."""

    async def scenario() -> None:
        crowd = Crowd(2, 2)
        await crowd.enter(4)
        assert [lane.inside for lane in crowd.inside.values()] == [1] * 4
        await crowd.enter(4)
        assert {lane.inside for lane in crowd.inside.values()} == {2}
        await crowd.empty()

    play(scenario)


def test_lanes_are_not_deeper_than_that() -> None:
    """More wait here, and follow in the order they came."""

    async def scenario() -> None:
        crowd = Crowd(2)
        await crowd.enter(40)
        assert sorted(crowd.inside) == list(range(2 * DEEP))
        await crowd.empty()
        assert crowd.order == list(range(40))

    play(scenario)


def test_who_waits_for_cores_gets_them() -> None:
    """Somebody else's request is served as soon as a lane has run empty, before those that came later."""

    async def scenario() -> None:
        crowd = Crowd(1)
        await crowd.enter(4)
        other = asyncio.create_task(crowd.slots.take(CORE))
        await crowd.enter(4)
        assert sorted(crowd.inside) == [0, 1, 2, 3]
        await crowd.leave(0, 1, 2)
        assert not other.done()
        await crowd.leave(3)
        assert other.done()
        assert crowd.inside == {}
        crowd.slots.give(other.result())
        await turn()
        assert sorted(crowd.inside) == [4, 5, 6, 7]
        await crowd.empty()

    play(scenario)


def test_two_kinds_that_wait_take_turns() -> None:
    """Others that ask again and again are not kept waiting by lanes, nor lanes by them."""

    async def scenario() -> None:
        crowd = Crowd(1)
        await crowd.enter(DEEP + 3)
        other = asyncio.create_task(crowd.slots.take(CORE))
        await turn()
        await crowd.leave(*range(DEEP))  # the lane is let run empty, though three wait for it
        assert sorted(crowd.inside) == [DEEP]  # they asked for cores first
        await crowd.leave(DEEP)
        assert other.done()
        crowd.slots.give(other.result())
        await turn()
        assert sorted(crowd.inside) == [DEEP + 1, DEEP + 2]
        await crowd.empty()

    play(scenario)


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "cancel"]), st.integers(0, 30)), max_size=30))
def test_nobody_is_lost(steps: list[tuple[str, int]]) -> None:
    """Whoever enters, leaves or gives up, in whatever order: in the end everybody was in, and all cores are free."""

    async def scenario() -> None:
        crowd = Crowd(1, 2)
        cancelled = set()
        for what, number in steps:
            if what == "enter":
                await crowd.enter(number)
            elif what == "leave" and crowd.inside:
                await crowd.leave(list(crowd.inside)[number % len(crowd.inside)])
            elif what == "cancel" and (waiting := [n for n, task in crowd.tasks.items() if not task.done()]):
                cancelled.add(waiting[number % len(waiting)])
                crowd.tasks[waiting[number % len(waiting)]].cancel()
        await turn()
        await crowd.empty()
        assert set(crowd.order) == crowd.tasks.keys() - cancelled

    play(scenario)


def test_no_lane_on_a_node_that_is_gone() -> None:
    """A lost node's lanes are given no more."""

    async def scenario() -> None:
        crowd = Crowd(1, 1)
        await crowd.enter(2 * DEEP + 4)
        gone = crowd.inside[0].client
        crowd.slots.remove(gone)
        gone.lose("its node was lost")
        for number in [n for n, lane in crowd.inside.items() if lane.client is gone]:
            await crowd.leave(number)
        assert all(lane.client is not gone for lane in crowd.inside.values())
        await crowd.empty()
        assert len(crowd.order) == 2 * DEEP + 4

    play(scenario)


def test_a_failed_engine_is_everybodys_error() -> None:
    """When nothing is left to run on, all who wait are told."""

    async def scenario() -> None:
        crowd = Crowd(1)
        await crowd.enter(DEEP + 2)
        crowd.slots.fail(EngineError("the pilot failed"))
        await turn()
        for number in (DEEP, DEEP + 1):
            assert isinstance(crowd.tasks[number].exception(), EngineError)
        await crowd.empty()

    play(scenario)


def attempt(name: str) -> Attempt:
    return Attempt(id=name, kind="command")


def test_a_supervisor_keeps_the_order() -> None:
    """One after the other in a lane; lanes know nothing of each other; without a lane nobody stands behind anybody."""
    behind = Behind()
    assert [behind.stands(0, attempt("a"), b""), behind.stands(0, attempt("b"), b"")] == [False, False]
    assert [behind.stands(7, attempt(name), b"") for name in "cde"] == [False, True, True]
    assert not behind.stands(8, attempt("f"), b"")
    assert (behind.count, list(behind)) == (2, ["d", "e"])
    assert behind.remove("d")
    assert not behind.remove("d")
    assert behind.next(7) == (attempt("e"), b"")
    assert behind.next(7) is None
    assert behind.count == 0
    assert not behind.stands(7, attempt("g"), b"")


def test_a_supervisor_sends_back_who_stands_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not brief after all holds up nobody: those behind it can run elsewhere."""
    behind = Behind()
    behind.stands(7, attempt("a"), b"")
    behind.stands(7, attempt("b"), b"")
    behind.stands(8, attempt("c"), b"")
    assert behind.send_back() == []
    assert behind.due() < float("inf")
    monkeypatch.setattr("rose_hpc.execution.behind.PATIENCE_S", 0.0)
    assert behind.send_back() == ["b"]
    assert (behind.count, behind.due()) == (0, float("inf"))
    assert behind.next(7) is None
