"""Slots: never more than there are, in the order they were asked for, none lost, whoever is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rose_hpc.errors import UsageError
from rose_hpc.execution.slots import Request, Slots

NODES = {"wide": 4, "narrow": 2}
# A step asks for cores, lets a holder give them back, cancels somebody, or lets the event loop turn.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 4)),
        st.tuples(st.just("give"), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("turn"), st.integers(0, 3)),
    ),
    max_size=40,
)


class Crowd:
    """Tasks that take cores and hold them until told to give them back."""

    def __init__(self, nodes: dict[str, int]) -> None:
        self.slots = Slots()
        for node, cores in nodes.items():
            self.slots.add(node, cores)
        self.total = dict(nodes)
        self.held = dict.fromkeys(nodes, 0)
        self.tasks: list[asyncio.Task[None]] = []
        self.done: list[asyncio.Event] = []
        self.served: list[int] = []

    async def _hold(self, number: int, cores: int) -> None:
        grant = await self.slots.take(Request(cores))
        (node,) = grant.nodes
        self.served.append(number)
        self.held[node] += cores
        assert self.held[node] <= self.total[node]
        try:
            await self.done[number].wait()
        finally:
            self.held[node] -= cores
            self.slots.give(grant)

    async def step(self, what: str, number: int) -> None:
        if what == "ask":
            self.done.append(asyncio.Event())
            self.tasks.append(asyncio.create_task(self._hold(len(self.tasks), number)))
        elif what == "give" and self.done:
            self.done[number % len(self.done)].set()
        elif what == "cancel" and self.tasks:
            self.tasks[number % len(self.tasks)].cancel()
        elif what == "turn":
            for _ in range(number):
                await asyncio.sleep(0)

    async def settle(self) -> set[int]:
        """Let everything happen that can; who waits then."""
        await self.step("turn", 5)
        return {number for number, task in enumerate(self.tasks) if not task.done()} - set(self.served)

    async def ask(self, *cores: int) -> None:
        for number in cores:
            await self.step("ask", number)
        await self.step("turn", 3)

    async def leave(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.done[number].set()
        await self.step("turn", 3)

    async def end(self) -> list[object]:
        """Everybody leaves; how each ended: None, or its error."""
        for event in self.done:
            event.set()
        return await asyncio.wait_for(asyncio.gather(*self.tasks, return_exceptions=True), 10)


@settings(deadline=None)
@given(STEPS)
def test_slots_are_never_oversubscribed_and_never_lost(steps):
    """Whatever is asked, given and cancelled at whatever moment: never more than all, in order, in the end all free."""

    async def scenario() -> None:
        crowd = Crowd(NODES)
        for step in steps:
            await crowd.step(*step)
            assert all(0 <= crowd.slots.free[node] <= total for node, total in NODES.items())
            if step == ("turn", 3):
                waiting = await crowd.settle()
                assert max(crowd.served, default=-1) < min(waiting, default=len(crowd.tasks)), "somebody was overtaken"
        ends = await crowd.end()
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
        assert crowd.slots.free == NODES

    asyncio.run(scenario())


def test_small_requests_do_not_overtake_large_ones():
    """Who asks for all cores gets them in turn, though smaller requests behind it would fit at once."""

    async def scenario() -> None:
        crowd = Crowd({"only": 4})
        await crowd.ask(1, 4, 1)
        assert crowd.served == [0]
        await crowd.leave([0])
        assert crowd.served == [0, 1]
        assert await crowd.end() == [None] * 3
        assert crowd.served == [0, 1, 2]

    asyncio.run(scenario())


def test_a_request_goes_where_it_fits_best():
    """The node with the fewest free cores that are enough serves a request, so that wide ones find room."""

    async def scenario() -> None:
        crowd = Crowd(NODES)
        await crowd.ask(2, 4)
        assert crowd.held == {"wide": 4, "narrow": 2}
        await crowd.end()

    asyncio.run(scenario())


def test_a_cancelled_request_lets_the_next_through():
    """When the one at the head gives up waiting, those behind it that fit are served at once."""

    async def scenario() -> None:
        crowd = Crowd({"only": 4})
        await crowd.ask(1, 4, 2)
        crowd.tasks[1].cancel()
        await crowd.step("turn", 3)
        assert crowd.served == [0, 2]
        await crowd.end()

    asyncio.run(scenario())


def test_cores_given_to_one_that_is_cancelled_are_not_lost():
    """Who is cancelled after it was its turn, and before it knew, has its cores given to the next."""

    async def scenario() -> None:
        slots = Slots()
        slots.add("only", 1)
        grant = await slots.take(Request(1))
        unlucky, following = (asyncio.create_task(slots.take(Request(1))) for _ in range(2))
        await asyncio.sleep(0)
        slots.give(grant)
        unlucky.cancel()
        assert (await asyncio.wait_for(following, 10)).nodes == ("only",)
        assert unlucky.cancelled()
        slots.give(grant)
        assert slots.free == {"only": 1}

    asyncio.run(scenario())


def test_what_can_never_be_given_is_refused():
    """A request for more than any node has is an error at once, not a wait for ever."""

    async def scenario() -> None:
        with pytest.raises(UsageError, match="asks for 5 cores on one node, and the largest has 4"):
            await Crowd(NODES).slots.take(Request(5))

    asyncio.run(scenario())


def test_a_node_that_joins_serves_who_waits():
    """Requests made before there is any node wait for the first."""

    async def scenario() -> None:
        crowd = Crowd({})
        await crowd.ask(3)
        assert crowd.served == []
        crowd.total["late"], crowd.held["late"] = 3, 0
        crowd.slots.add("late", 3)
        assert await crowd.end() == [None]
        assert crowd.served == [0]

    asyncio.run(scenario())


def test_a_lost_node_gives_nothing_any_more():
    """Cores of a node that is gone are not given out again; who waits for more than is left is told so."""

    async def scenario() -> None:
        crowd = Crowd(NODES)
        await crowd.ask(4, 4)
        crowd.slots.remove("wide")
        await crowd.leave([0])
        ends = await crowd.end()
        assert isinstance(ends[1], UsageError)
        assert (ends[0], crowd.slots.free) == (None, {"narrow": 2})

    asyncio.run(scenario())


def test_a_lost_node_lets_the_next_through():
    """When the one at the head can never be served any more, those behind it that fit are served at once."""

    async def scenario() -> None:
        crowd = Crowd(NODES)
        await crowd.ask(3, 4, 2)
        crowd.slots.remove("wide")
        await crowd.step("turn", 3)
        assert crowd.served == [0, 2]
        await crowd.end()

    asyncio.run(scenario())


def test_a_node_that_is_avoided_is_given_only_where_there_is_no_other():
    """Who avoids a node waits for another that could hold it; where none could, it gets the one there is."""

    async def main():
        slots = Slots()
        slots.add("good", 2)
        slots.add("bad", 4)
        other = await slots.take(Request(1))
        assert other.nodes == ("good",)
        waiting = asyncio.create_task(slots.take(Request(2, avoid=frozenset({"bad"}))))
        await asyncio.sleep(0)
        assert not waiting.done()
        slots.give(other)
        assert (await waiting).nodes == ("good",)
        assert (await slots.take(Request(3, avoid=frozenset({"bad"})))).nodes == ("bad",)
        slots.remove("good")
        assert (await slots.take(Request(1, avoid=frozenset({"bad"})))).nodes == ("bad",)

    asyncio.run(main())


def test_memory_is_given_out_as_cores_are():
    """Who asks for memory waits until a node has it free, whatever cores it has; more than any has is refused."""

    async def main():
        slots = Slots()
        slots.add("large", 4, memory_mb=16384)
        slots.add("unknown", 1)
        first = await slots.take(Request(1, memory_mb=10240))
        assert first.nodes == ("unknown",)  # the fewest free cores; nobody knows its memory
        second = await slots.take(Request(1, memory_mb=10240))
        assert (second.nodes, second.memory_mb) == (("large",), 10240)
        waiting = asyncio.create_task(slots.take(Request(1, memory_mb=10240)))
        await asyncio.sleep(0)
        assert not waiting.done()
        slots.give(second)
        assert (await waiting).nodes == ("large",)
        slots.remove("unknown")
        with pytest.raises(
            UsageError, match="1 cores, 17 GB of memory on a node, and 0 of 1 nodes can give that; lower its"
        ):
            await slots.take(Request(1, memory_mb=17 * 1024))
        slots.give(await waiting)
        assert (await slots.take(Request(1, nodes=1, memory_mb=16384))).nodes == ("large",)

    asyncio.run(main())


def test_whole_nodes_have_the_memory_that_is_asked_of_each():
    """Several nodes are given only if each has its cores, and its memory, free."""

    async def main():
        slots = Slots()
        for name, memory_mb in (("a", 8), ("b", 16), ("c", 16)):
            slots.add(name, 2, memory_mb=memory_mb)
        grant = await slots.take(Request(2, nodes=2, memory_mb=12))
        assert grant.nodes == ("b", "c")
        slots.give(grant)
        assert (await slots.take(Request(2, nodes=3, memory_mb=8))).nodes == ("a", "b", "c")
        with pytest.raises(
            UsageError, match="GB of memory on each of 3 nodes, and 2 of 3 nodes can give that; lower its ranks or"
        ):
            await slots.take(Request(2, nodes=3, memory_mb=9))

    asyncio.run(main())
