"""Write-behind: records follow the files that they speak of, whatever happens in between."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from rose_hpc.errors import OwnedError, RunError
from rose_hpc.journal import Journal, read_journal
from rose_hpc.write_behind import WriteBehind


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def written(journal: Journal) -> list[tuple[int, str]]:
    return [(record["seq"], record["kind"]) for record in read_journal(journal.path)]


def test_without_work_records_are_written_at_once(journal):
    """What has no files to wait for is in the journal when append_all returns; no event loop is needed."""
    (record,) = WriteBehind(journal).append_all("run", [{"name": "toy"}])
    assert read_journal(journal.path)[0].items() >= record.items()


def test_records_follow_the_work_before_them(journal):
    """None is written before what was to be done first, all are in the order of their appending, and work too."""

    async def main() -> None:
        behind, done = WriteBehind(journal), []
        go = threading.Event()
        behind.do(lambda: done.append(go.wait(20)))
        (first,) = behind.append_all("first", [{"n": 1}])
        behind.append_all("second", [{"n": 2}, {"n": 3}])
        behind.do(lambda: done.append(written(journal)))
        behind.do(lambda: done.append(threading.current_thread() is threading.main_thread()))
        behind.append_all("third", [{}])
        await asyncio.sleep(0)
        assert (done, written(journal), first["kind"]) == ([], [], "first")
        go.set()
        await behind.settle()
        before = [(0, "first"), (1, "second"), (2, "second")]
        assert done == [True, before, False]
        assert written(journal) == [*before, (3, "third")]
        behind.append_all("fourth", [{}])
        assert written(journal)[-1] == (4, "fourth"), "it is at rest again, without anybody's waiting"

    asyncio.run(main())


def test_it_comes_to_rest_by_itself(journal):
    """Records do not wait for somebody to settle: they are written as soon as the work is done."""

    async def main() -> None:
        behind = WriteBehind(journal)
        behind.do(lambda: None)
        behind.append_all("first", [{}])
        async with asyncio.timeout(20):
            while not written(journal):
                await asyncio.sleep(0.001)

    asyncio.run(main())


def test_what_follows_a_failure_is_never_written(journal):
    """Everybody who settles or records is told; nothing after the failed work was done or written."""

    async def main() -> None:
        behind, done = WriteBehind(journal), []

        def fail() -> None:
            raise RunError("cannot bring it to the disk")

        behind.do(lambda: done.append(1))
        behind.append_all("before", [{}])
        behind.do(fail)
        behind.do(lambda: done.append(2))
        behind.append_all("after", [{}])
        for _ in range(2):
            with pytest.raises(RunError, match="cannot bring it to the disk"):
                await behind.settle()
        assert (done, written(journal)) == ([1], [(0, "before")])
        with pytest.raises(RunError, match="cannot bring it to the disk"):
            behind.append_all("later", [{}])
        with pytest.raises(RunError, match="cannot bring it to the disk"):
            behind.do(lambda: done.append(3))
        behind.forget()
        await behind.settle()
        behind.append_all("end", [{}])
        assert (done, written(journal)) == ([1], [(0, "before"), (1, "end")])

    asyncio.run(main())


def test_a_failure_that_was_told_is_forgiven_and_nothing_dropped(journal):
    """Forgiving is for failures alone: what still waits, because something else went wrong, is written."""

    async def main() -> None:
        behind, go = WriteBehind(journal), threading.Event()
        behind.do(lambda: go.wait(20) and None)
        behind.append_all("kept", [{}])
        behind.forgive()
        go.set()
        await behind.settle()
        behind.do(lambda: (_ for _ in ()).throw(RunError("no")))
        with pytest.raises(RunError):
            await behind.settle()
        behind.forgive()
        behind.append_all("more", [{}])
        assert written(journal) == [(0, "kept"), (1, "more")]

    asyncio.run(main())


def test_a_record_is_what_it_was(journal):
    """What a program does to a value later changes no record, and what JSON cannot hold is told to whoever records."""

    async def main() -> None:
        behind, go = WriteBehind(journal), threading.Event()
        behind.do(lambda: go.wait(20) and None)
        behind.append_all("value", [{"value": (value := {"loss": 1})}])
        value["loss"] = 2
        with pytest.raises(TypeError):
            behind.append_all("other", [{"value": object()}])
        go.set()
        await behind.settle()
        assert [record["value"] for record in read_journal(journal.path)] == [{"loss": 1}]

    asyncio.run(main())


def test_nothing_is_written_for_a_run_that_has_another_owner(journal):
    """Whose the run is, is seen before work and before records, not only when they are ordered."""
    lost: list[OwnedError] = []

    def check() -> None:
        if lost:
            raise lost[0]

    async def main() -> None:
        behind, done = WriteBehind(journal, check), []
        behind.do(lambda: lost.append(OwnedError("another driver")))
        behind.append_all("late", [{}])
        behind.do(lambda: done.append(1))
        with pytest.raises(OwnedError):
            await behind.settle()
        assert (done, written(journal)) == ([], [])

    asyncio.run(main())


def test_the_end_of_the_event_loop_loses_nothing(journal):
    """A program's loop that ends early cancels every task; what was ordered is done and written when it is closed."""
    done: list[str] = []
    behind, go = WriteBehind(journal), threading.Event()

    async def main() -> None:
        behind.do(lambda: go.wait(20) and None)
        behind.append_all("first", [{}])
        behind.do(lambda: done.append("second"))
        behind.append_all("third", [{}])

    asyncio.run(main())
    go.set()
    behind.finish()
    assert (done, written(journal)) == (["second"], [(0, "first"), (1, "third")])


def test_finishing_tells_of_failures(journal):
    """Of work in the thread, and of work done here."""

    def fail() -> None:
        raise RunError("no")

    async def main(behind: WriteBehind, works: list) -> None:
        for work in works:
            behind.do(work)
            behind.append_all("after", [{}])

    for works in ([fail], [lambda: None, fail]):
        behind = WriteBehind(journal)
        asyncio.run(main(behind, works))
        with pytest.raises(RunError, match="no"):
            behind.finish()
    assert written(journal) == [(0, "after")], "of the work that went well"


def test_who_is_not_waited_for_can_be_forgotten(journal):
    """A disk that hangs: what waits for it is dropped, and what comes then is written at once."""
    go = threading.Event()

    async def main() -> None:
        behind = WriteBehind(journal)
        behind.do(lambda: go.wait(20) and None)
        behind.append_all("dropped", [{}])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await behind.settle()
        behind.forget()
        behind.append_all("end", [{}])
        assert written(journal) == [(0, "end")]
        behind.do(lambda: None)  # by another thread
        behind.append_all("more", [{}])
        await behind.settle()
        go.set()
        assert written(journal) == [(0, "end"), (1, "more")]

    asyncio.run(main())


def test_whoever_waits_may_be_cancelled(journal):
    """An interrupt ends the waiting, not the work."""

    async def main() -> None:
        behind, go = WriteBehind(journal), threading.Event()
        behind.do(lambda: go.wait(20) and None)
        behind.append_all("kept", [{}])
        waiting = asyncio.create_task(behind.settle())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        go.set()
        await behind.settle()
        assert written(journal) == [(0, "kept")]

    asyncio.run(main())


def test_a_record_may_overtake_those_that_wait(journal):
    """One that the journal is given directly is written at once, and the others find their places after it."""

    async def main() -> None:
        behind, go = WriteBehind(journal), threading.Event()
        behind.do(lambda: go.wait(20) and None)
        behind.append_all("later", [{}])
        journal.append("now")
        assert written(journal) == [(0, "now")]
        go.set()
        await behind.settle()
        assert written(journal) == [(0, "now"), (1, "later")]

    asyncio.run(main())
