"""What a file holds of each environment: rows, rewards, episodes and their returns. Read without HDF5."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rose_hpc.experience.episodes import Episodes, Returns, find_episodes, returns_of_shards
from rose_hpc.experience.scan import scan
from rose_hpc.experience.schema import REWARDS, Column, ShardInfo
from rose_hpc.experience.stats import Stats


@dataclass(frozen=True)
class Part:
    """One environment's rows in a file.

    Attributes:
        name: of its shard.
        start, stop: its rows in the file.
        rewards: statistics of them; None without any, or where a row has several.
        returns: of its episodes; None where no column tells them.
    """

    name: str
    start: int
    stop: int
    rewards: Stats | None
    returns: Returns | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "rows": self.stop - self.start,
            "rewards": numbers(self.rewards),
            "returns": asdict(self.returns) if self.returns else None,
        }


def parts_of(info: ShardInfo, episodes: Episodes | None) -> list[Part]:
    """The environments of a bank, in order; a shard's one.

    Raises:
        DamagedError: when the file ends early.
    """
    returns = returns_of_shards(info, episodes) if episodes is not None else {}
    column = info.columns.get(REWARDS)
    spans = zip(info.shard_names, pairwise(info.shard_offsets), strict=True)
    return [Part(name, a, b, _rewards(info, column, a, b), returns.get(name)) for name, (a, b) in spans]


def episodes_of(info: ShardInfo) -> Episodes | None:
    """The episodes that a file's rows have, whatever it says of them."""
    return find_episodes(info.path, info.columns, info.shard_offsets)


def numbers(stats: Stats | None) -> dict[str, float | None] | None:
    """Scalar statistics as plain data, without what JSON has no number for."""
    if stats is None:
        return None
    values = {name: float(getattr(stats, name)) for name in ("count", "mean", "std", "min", "max", "nans")}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _rewards(info: ShardInfo, column: Column | None, start: int, stop: int) -> Stats | None:
    if column is None or column.shape:
        return None
    if info.kind == "shard" and column.stats is not None:
        return column.stats
    here = Column(column.dtype, column.shape, column.offset + start * column.row_bytes)
    return scan(info.path, {REWARDS: here}, stop - start)[REWARDS].stats
