"""Write-behind: records follow the files that they speak of, whatever happens in between."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from rose_hpc.errors import RunError
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
    """The first to settle is told; nothing after the failed work was done or written, and the journal can be used."""

    async def main() -> None:
        behind, done = WriteBehind(journal), []

        def fail() -> None:
            raise RunError("cannot bring it to the disk")

        behind.do(lambda: done.append(1))
        behind.append_all("before", [{}])
        behind.do(fail)
        behind.do(lambda: done.append(2))
        behind.append_all("after", [{}])
        with pytest.raises(RunError, match="cannot bring it to the disk"):
            await behind.settle()
        assert (done, written(journal)) == ([1], [(0, "before")])
        await behind.settle()
        behind.append_all("end", [{}])
        assert written(journal) == [(0, "before"), (1, "end")]

    asyncio.run(main())


def test_records_after_a_failure_wait_until_it_is_seen(journal):
    """Between a failure and its telling, nothing that speaks of lost files gets into the journal."""

    async def main() -> None:
        behind, failed = WriteBehind(journal), threading.Event()

        def fail() -> None:
            failed.set()
            raise RunError("no")

        behind.do(fail)
        async with asyncio.timeout(20):
            while not failed.is_set():
                await asyncio.sleep(0.001)
        behind.append_all("after", [{}])
        with pytest.raises(RunError):
            await behind.settle()
        assert written(journal) == []

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
