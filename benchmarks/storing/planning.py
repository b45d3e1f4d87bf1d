"""Planning a merge, and reading headers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rose_hpc import ShardWriter
from rose_hpc.experience.header import read_info
from rose_hpc.experience.plan import plan_spans
from rose_hpc.experience.schema import ShardInfo
from storing.table import Table, duration, seconds


def plan_rows(folder: Path, table: Table) -> None:
    """Rows for reading a header and for planning 10,000 shards of 10 columns."""
    table.title("headers and plans, 10 columns")
    model = _shard(folder / "plan.h5")
    each = min(seconds(lambda: [read_info(model.path) for _ in range(200)]) for _ in range(5)) / 200
    table.row("reading a sealed shard's header", duration(each), "", "", "< 0.5 ms", each < 5e-4)
    shards = many(model, 10_000)
    time = min(seconds(lambda: plan_spans(shards)) for _ in range(3))
    table.row("planning 10,000 shards", duration(time), "", "", "< 1 s", time < 1)
    tracemalloc.start()
    plan = plan_spans(shards)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert plan.rows == sum(shard.rows for shard in shards)
    table.row("memory it takes", f"{peak:.1f} MB", "", "", "< 50 MB", peak < 50)
    model.path.unlink()


def by_shards(folder: Path, counts: Sequence[int]) -> dict[int, float]:
    """Seconds of planning so many shards."""
    model = _shard(folder / "plan.h5")
    found = {}
    for count in counts:
        shards = many(model, count)
        found[count] = min(seconds(lambda: plan_spans(shards)) for _ in range(3))  # noqa: B023 - used at once
    model.path.unlink()
    return found


def many(model: ShardInfo, count: int) -> list[ShardInfo]:
    """What is known of so many shards like one."""
    return [
        replace(model, path=Path(f"env_{number}.h5"), attributes={**model.attributes, "environment": f"env_{number}"})
        for number in range(count)
    ]


def _shard(path: Path) -> ShardInfo:
    rng = np.random.default_rng(0)
    with ShardWriter(path, fsync=False, attributes={"run": "r", "iteration": 0, "seed": 1}) as shard:
        shard.extend(observations=rng.random((50, 4)), **{f"column_{number}": rng.random(50) for number in range(9)})
    return read_info(path)
