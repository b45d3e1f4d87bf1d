"""Write-behind: a run goes on while its files are brought to the disk; what it records meanwhile is written after them.

So a record never speaks of what a crash of the machine could still undo, and nobody waits for the disk until an
iteration ends. A driver that is killed in between has recorded nothing of it: that has not happened then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from rose_hpc.journal import Journal, body_of, stamped

Records = list[dict[str, Any]]
Work = Callable[[], None]


class WriteBehind:
    """The order in which one driver's files and records reach the disk.

    None of it is a task of the event loop, whose end would cancel it.

    Args:
        journal: the run's.
        check: raises when the run is no longer ours; called before anything is written or done.
    """

    def __init__(self, journal: Journal, check: Callable[[], None] = lambda: None) -> None:
        self._journal = journal
        self._check = check
        self._queue: deque[Work | list[bytes]] = deque()  # records as they were when they were made
        self._thread: ThreadPoolExecutor | None = None
        self._working: Future[None] | None = None  # what the thread does now
        self._rested: asyncio.Future[None] | None = None  # until the queue is empty, or something failed
        self._error: BaseException | None = None

    def do(self, work: Work) -> None:
        """Have a thread do what comes before all that is recorded from now on.

        Raises:
            RunError: as :meth:`settle`.
        """
        self._look()
        self._queue.append(work)
        if self._rested is None:
            self._rested = asyncio.get_running_loop().create_future()
            self._go_on()

    def append_all(self, kind: str, those: Iterable[Mapping[str, Any]]) -> Records:
        """As :meth:`rose_hpc.journal.Journal.append_all`; where there is work to do first, it is written after that.

        Raises:
            RunError: as :meth:`settle`.
        """
        self._look()
        if self._rested is None:
            return self._journal.append_all(kind, those)
        records = stamped(kind, those)
        self._queue.append([body_of(record) for record in records])
        return records

    async def settle(self) -> None:
        """Wait until all is done and written; whoever waits may be cancelled, and it goes on.

        Raises:
            RunError, OwnedError: some of it could not be done or written, and nothing that was to come after it was.
                So it is said to everybody, until :meth:`forgive` or :meth:`forget`.
        """
        if (rested := self._rested) is not None:
            await asyncio.wait([rested])
        self._look()

    def finish(self) -> None:
        """Do and write what is left, here and now, and let go of the thread.

        Raises:
            RunError, OwnedError: as :meth:`settle`.
        """
        try:
            if (working := self._working) is not None:
                self._working = None
                working.result()
            while self._queue:
                self._step(self._queue.popleft())
        except Exception as error:  # noqa: BLE001 - it is raised wherever something is recorded next
            self._fail(error)
        self._rest()
        self._let_go()
        self._look()

    def forgive(self) -> None:
        """If something failed, that has been told: what is recorded from now on is written again."""
        self._error = None

    def forget(self) -> None:
        """Neither do nor write what is left; what is being done is not waited for."""
        self._queue.clear()
        self._working = self._error = None
        self._rest()
        self._let_go()

    def _look(self) -> None:
        if self._error is not None:
            raise self._error

    def _go_on(self) -> None:
        try:
            while self._queue:
                if not isinstance(self._queue[0], list):
                    self._check()
                    self._work_on(asyncio.get_running_loop())
                    return
                self._step(self._queue.popleft())
        except Exception as error:  # noqa: BLE001 - it is raised wherever something is recorded next
            self._fail(error)
        self._rest()

    def _work_on(self, events: asyncio.AbstractEventLoop) -> None:
        """Have the thread do all work before the next records, and go on then."""
        works: list[Work] = []
        while self._queue and not isinstance(self._queue[0], list):
            works.append(self._queue.popleft())  # type: ignore[arg-type]  # mypy narrows no element
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="rose_hpc writes behind")
        self._working = working = self._thread.submit(_do_all, works)

        def done(_: Future[None]) -> None:
            with suppress(RuntimeError):  # the event loop has ended: what is left is for `finish`
                events.call_soon_threadsafe(self._worked, working)

        working.add_done_callback(done)

    def _worked(self, working: Future[None]) -> None:
        if working is not self._working:
            return  # it was finished or forgotten
        self._working = None
        if (error := working.exception()) is not None:
            self._fail(error)
        self._go_on()

    def _step(self, item: Work | list[bytes]) -> None:
        self._check()
        if isinstance(item, list):
            self._journal.write(item)
        else:
            item()

    def _fail(self, error: BaseException) -> None:
        self._queue.clear()
        self._error = self._error or error

    def _rest(self) -> None:
        rested, self._rested = self._rested, None
        if rested is not None and not rested.done():
            with suppress(RuntimeError):  # its event loop has ended: nobody waits
                rested.set_result(None)

    def _let_go(self) -> None:
        """Of the thread, which may hang: the next work gets another."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None


def _do_all(works: Sequence[Work]) -> None:
    for work in works:
        work()
