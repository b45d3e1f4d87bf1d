"""Drawing from banks more than rows: whole episodes, sequences within one, and batches that are drawn ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import ExperienceError
from rose_hpc.experience.episodes import Episodes

T = TypeVar("T")


class Draws:
    """What may be drawn of some episodes; counted once, however often it is drawn.

    Args:
        episodes: of a bank.
    """

    def __init__(self, episodes: Episodes) -> None:
        self._episodes = episodes
        self._ended = np.flatnonzero(episodes.ended)
        self._length = 0
        self._ends = self._first = np.empty(0, np.int64)

    def episodes(self, n: int, rng: np.random.Generator, replace: bool) -> NDArray[np.int64]:
        """The numbers of ``n`` episodes that ended, each as likely as any other.

        Raises:
            ExperienceError: when there are none, or fewer than ``n`` without ``replace``.
        """
        count = len(self._ended)
        if n < 0 or not count or (n > count and not replace):
            raise ExperienceError(
                f"cannot sample {n} of {count} whole episodes",
                hint="an episode is whole when one of its rows terminates or truncates it",
            )
        return self._ended[rng.integers(0, count, n) if replace else rng.choice(count, n, replace=False)]

    def sequences(self, n: int, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The first rows of ``n`` sequences of ``length`` rows, each within one episode; every such row is as likely.

        Raises:
            ExperienceError: when no episode is so long.
        """
        if n < 0 or length < 1:
            raise ExperienceError(f"cannot sample {n} sequences of {length} rows", hint="give positive numbers")
        if length != self._length:
            fitting = np.maximum(self._episodes.lengths - length + 1, 0)
            self._ends, self._length = np.cumsum(fitting), length
            self._first = self._episodes.starts - (self._ends - fitting)
        if not len(self._ends) or not self._ends[-1]:
            longest = int(self._episodes.lengths.max(initial=0))
            raise ExperienceError(f"no episode has {length} rows", hint=f"the longest has {longest}")
        drawn = rng.integers(0, self._ends[-1], n)
        return np.asarray(self._first[np.searchsorted(self._ends, drawn, side="right")] + drawn)


def ahead(draw: Callable[[], T], depth: int) -> Iterator[T]:
    """What ``draw`` gives, without end, ``depth`` of it drawn ahead by a thread of its own, in order.

    Raises:
        ExperienceError: for a depth below 1.
    """
    if depth < 1:
        raise ExperienceError(f"cannot draw {depth} batches ahead", hint="give at least 1")
    with ThreadPoolExecutor(1, thread_name_prefix="replay") as pool:
        waiting = deque(pool.submit(draw) for _ in range(depth))
        try:
            while True:
                batch = waiting.popleft().result()
                waiting.append(pool.submit(draw))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def rows_of(array: Any, start: int, stop: int) -> NDArray[Any]:
    """A copy of some consecutive rows of a column."""
    return np.array(array[start:stop])
