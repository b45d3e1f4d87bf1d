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


def choose_episodes(episodes: Episodes, n: int, rng: np.random.Generator, replace: bool) -> NDArray[np.int64]:
    """The numbers of ``n`` episodes that ended, each as likely as any other.

    Raises:
        ExperienceError: when there are none, or fewer than ``n`` without ``replace``.
    """
    ended = np.flatnonzero(episodes.ended)
    if n < 0 or not len(ended) or (n > len(ended) and not replace):
        raise ExperienceError(
            f"cannot sample {n} of {len(ended)} whole episodes",
            hint="an episode is whole when one of its rows terminates or truncates it",
        )
    return ended[rng.integers(0, len(ended), n) if replace else rng.choice(len(ended), n, replace=False)]


def choose_sequences(episodes: Episodes, n: int, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The first rows of ``n`` sequences of ``length`` rows, each within one episode; every such row is as likely.

    Raises:
        ExperienceError: when no episode is so long.
    """
    if n < 0 or length < 1:
        raise ExperienceError(f"cannot sample {n} sequences of {length} rows", hint="give positive numbers")
    fitting = np.maximum(episodes.lengths - length + 1, 0)
    ends = np.cumsum(fitting)
    if not len(ends) or not ends[-1]:
        longest = int(episodes.lengths.max(initial=0))
        raise ExperienceError(f"no episode has {length} rows", hint=f"the longest has {longest}")
    drawn = rng.integers(0, ends[-1], n)
    owner = np.searchsorted(ends, drawn, side="right")
    return np.asarray(episodes.starts[owner] + drawn - (ends[owner] - fitting[owner]))


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


def take(array: Any, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of a column by number, whatever the shape of ``rows``; a new array, ``rows`` by a row."""
    return np.asarray(array.take(rows, axis=0) if isinstance(array, np.ndarray) else array[rows])
