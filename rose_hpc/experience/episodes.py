"""Where episodes start, and what they returned: found while the rows are at hand, and kept in the bank.

An episode ends with a row that terminates or truncates it. Rows after a shard's last such row are an episode that has
not ended: it is listed, and marked so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from rose_hpc.errors import DamagedError
from rose_hpc.experience.files import UnreadableError, opened, read_into
from rose_hpc.experience.schema import FLAGS, REWARDS, Column, ShardInfo

#: a bank with more keeps none: they are found again when they are asked for
MAX_KEPT = 2**20
#: rows looked at at once
_BLOCK = 256 * 1024
#: attributes of a bank that hold the three arrays
_ATTRIBUTES = ("episode_starts", "episode_returns", "episode_ended")

Reader = Callable[[Column, int, int], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Episodes:
    """The episodes of some rows, in order.

    Attributes:
        starts: int64, the first row of each; one's rows end where the next one's, or the shard's, begin.
        stops: int64, one past the last row of each.
        returns: float64, the sum of rewards of each; NaN where there are no scalar rewards.
        ended: bool, False for one that its shard's end cut off.
    """

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    returns: NDArray[np.float64]
    ended: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows of each."""
        return self.stops - self.starts

    @property
    def digest(self) -> str:
        """xxh3-128 of starts, returns and ended, in this order; 32 hex digits."""
        total = xxhash.xxh3_128()
        for array in (self.starts, self.returns, self.ended):
            total.update(np.ascontiguousarray(array).view(np.uint8).data)
        return total.hexdigest()

    def attributes(self) -> dict[str, NDArray[Any]]:
        """What a bank keeps of them."""
        return dict(zip(_ATTRIBUTES, (self.starts, self.returns, self.ended), strict=True))

    def between(self, start: int, stop: int, shift: int = 0) -> Episodes:
        """Those that lie in rows ``start`` to ``stop``, with ``shift`` added to their rows."""
        a, b = np.searchsorted(self.starts, start), np.searchsorted(self.stops, stop, side="right")
        return Episodes(self.starts[a:b] + shift, self.stops[a:b] + shift, self.returns[a:b], self.ended[a:b])


@dataclass(frozen=True)
class Returns:
    """Returns of the episodes that ended, of one environment.

    Attributes:
        episodes: how many ended.
        mean: of their returns, like the next three; None without a return that is a number.
    """

    episodes: int
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None

    @staticmethod
    def of(episodes: Episodes) -> Returns:
        """Sum them up."""
        ended = episodes.returns[episodes.ended]
        known = ended[np.isfinite(ended)]
        if not len(known):
            return Returns(len(ended))
        return Returns(len(ended), *(float(f(known)) for f in (np.mean, np.std, np.min, np.max)))


def returns_of_shards(info: ShardInfo, episodes: Episodes) -> dict[str, Returns]:
    """The returns of each shard of a bank, by its name; of the shard itself for a shard."""
    spans = zip(info.shard_names, pairwise(info.shard_offsets), strict=True)
    return {name: Returns.of(episodes.between(start, stop)) for name, (start, stop) in spans}


def returns_of(info: ShardInfo) -> dict[str, dict[str, Any]]:
    """The same as plain data; empty where there are no episodes to tell."""
    if info.episodes is not None:
        episodes = read_episodes(info)
        return {name: asdict(of) for name, of in returns_of_shards(info, episodes).items()} if episodes else {}
    spans = zip(info.shard_names, pairwise(info.shard_offsets), strict=True)  # one by one: there may be a great many
    found = {name: find_episodes(info.path, info.columns, span) for name, span in spans}
    return {name: asdict(Returns.of(of)) for name, of in found.items() if of is not None}


def joined(parts: Sequence[Episodes]) -> Episodes:
    """Episodes one after another."""
    fields = ("starts", "stops", "returns", "ended")
    kinds = (np.int64, np.int64, np.float64, np.bool_)
    return Episodes(
        *(
            np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in parts)]).astype(kind, copy=False)
            for name, kind in zip(fields, kinds, strict=True)
        )
    )


def read_episodes(info: ShardInfo) -> Episodes | None:
    """The episodes of a file: those it keeps, or found in its rows; None when it has no flags to tell them by.

    Raises:
        DamagedError: when those it keeps were altered, or the file ends early.
    """
    if info.episodes is None:
        return find_episodes(info.path, info.columns, info.shard_offsets)
    from rose_hpc.experience.hdf5 import read_attribute, reading, root_of  # here: finding them needs no h5py

    with reading(info.path) as file:
        starts, returns, ended = (np.atleast_1d(read_attribute(root_of(file), name)) for name in _ATTRIBUTES)
    stops = np.append(starts[1:], info.rows)
    ends = np.asarray(info.shard_offsets)[1:]
    at = np.searchsorted(ends, starts, side="right")
    found = Episodes(starts, np.minimum(stops, ends[np.minimum(at, len(ends) - 1)]), returns, ended)
    if found.digest != info.episodes:
        raise DamagedError(f"{info.path} is damaged: its list of episodes was altered", paths=[str(info.path)])
    return found


def find_episodes(
    path: Path, columns: Mapping[str, Column], offsets: Sequence[int], *, workers: int = 1, most: int | None = None
) -> Episodes | None:
    """Find them in the rows of a file.

    Args:
        path: the file.
        columns: with their offsets in it.
        offsets: where each shard's rows start, and the end of the last: no episode goes on from one into the next.
        workers: threads that look.
        most: give up, and return None, when there are more.

    Raises:
        DamagedError: when the file ends early.
    """
    flags = [columns[name] for name in FLAGS if name in columns and columns[name].row_bytes == 1]
    if not flags:
        return None
    rewards = columns.get(REWARDS)
    if rewards is not None and rewards.row_bytes != np.dtype(rewards.dtype).itemsize:
        rewards = None  # several rewards a step have no one sum
    try:
        with opened(path) as fd, ThreadPoolExecutor(workers) as pool:

            def read(column: Column, start: int, count: int) -> NDArray[Any]:
                array = np.empty(count, column.dtype)
                read_into(fd, array.view(np.uint8).data, column.offset + start * column.row_bytes)
                return array

            parts, count = [], 0
            for part in pool.map(partial(_of_shards, read, flags, rewards), _groups(offsets)):
                parts.append(part)
                count += len(part)
                if most is not None and count > most:
                    pool.shutdown(cancel_futures=True)
                    return None
            return joined(parts)
    except UnreadableError as error:
        raise DamagedError(f"{path} is damaged: {error}", paths=[str(path)], hint=error.hint) from error


def _groups(offsets: Sequence[int]) -> Iterator[list[int]]:
    """Edges of shards to look at together: small ones as many as make a block, large ones each alone."""
    edges = [offsets[0]]
    for end in offsets[1:]:
        if end - edges[0] > _BLOCK and len(edges) > 1:
            yield edges
            edges = [edges[-1]]
        if end > edges[-1]:
            edges.append(end)
    if len(edges) > 1:
        yield edges


def _of_shards(read: Reader, flags: Sequence[Column], rewards: Column | None, edges: Sequence[int]) -> Episodes:
    """The episodes of the shards between these edges.

    In blocks counted from the first one's start: a shard that has several is alone, so that its sums are rounded alike
    wherever it lies.
    """
    stops, returns, ended = [], [], []
    carry = 0.0  # the return, so far, of the episode that goes on
    for at in range(edges[0], edges[-1], _BLOCK):
        count = min(_BLOCK, edges[-1] - at)
        over = read(flags[0], at, count).view(np.uint8)  # not bool: in a foreign file the byte may be anything
        for flag in flags[1:]:
            over = over | read(flag, at, count).view(np.uint8)
        closes = over != 0
        closes[[edge - at - 1 for edge in edges[1:] if edge <= at + count]] = True
        ends = np.flatnonzero(closes) + 1
        whole = bool(len(ends)) and int(ends[-1]) == count
        cuts = np.concatenate([[0], ends[:-1] if whole else ends])
        values = np.full(count, np.nan) if rewards is None else read(rewards, at, count)
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, and may be
            sums = np.add.reduceat(values, cuts, dtype=np.float64)
            if at > edges[0]:
                sums[0] += carry
        stops.append(at + ends)
        returns.append(sums if whole else sums[:-1])
        ended.append(over[ends - 1] != 0)
        carry = 0.0 if whole else float(sums[-1])
    last = np.concatenate(stops)
    return Episodes(np.append(edges[0], last[:-1]), last, np.concatenate(returns), np.concatenate(ended))
