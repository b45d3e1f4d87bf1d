"""Write-behind: a run goes on while its files are brought to the disk; what it records meanwhile is written after them.

So a record never speaks of what a crash of the machine could still undo, and nobody waits for the disk until an
iteration ends. A driver that is killed in between has recorded nothing of it: that has not happened then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rose_hpc.journal import Journal, stamped

Records = list[dict[str, Any]]


class WriteBehind:
    """The order in which one driver's files and records reach the disk.

    Args:
        journal: the run's.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._queue: deque[Callable[[], None] | Records] = deque()
        self._task: asyncio.Task[None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Have a thread do what comes before all that is recorded from now on."""
        self._queue.append(work)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def append_all(self, kind: str, those: Iterable[Mapping[str, Any]]) -> Records:
        """As :meth:`rose_hpc.journal.Journal.append_all`; where there is work to do first, it is written after that."""
        if self._task is None:
            return self._journal.append_all(kind, those)
        records = stamped(kind, those)
        self._queue.append(records)
        return records

    async def settle(self) -> None:
        """Wait until all is done and written; whoever waits may be cancelled, and it goes on.

        Raises:
            RunError: some of it could not be done; nothing that was to come after it was done or written.
        """
        if (task := self._task) is None:
            return
        await asyncio.wait([task])
        if task is self._task:  # it failed, and this is the first to see it
            self._task = None
            self._queue.clear()
            task.result()

    async def _run(self) -> None:
        while self._queue:
            if isinstance(self._queue[0], list):
                self._journal.write(self._queue.popleft())  # type: ignore[arg-type]  # mypy narrows no element
            else:
                works = [self._queue.popleft()]
                while self._queue and not isinstance(self._queue[0], list):
                    works.append(self._queue.popleft())
                await asyncio.to_thread(_do_all, works)
        self._task = None


def _do_all(works: Sequence[Any]) -> None:
    for work in works:
        work()
