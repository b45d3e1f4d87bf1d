"""Cost against shards and against bytes: a picture, and whether a straight line fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from storing.table import Table

WAYS = ("verified", "unverified", "cat")
#: of what varies, the least that a straight line explains; or how far no point is from it, of what it says there
STRAIGHT, NEAR = 0.97, 0.15


def curves(
    table: Table,
    picture: Path,
    shards: Mapping[int, Mapping[str, float]],
    size: float,
    sizes: Mapping[float, Mapping[str, float]],
    plans: Mapping[int, float],
) -> None:
    """Draw the three and say how straight they are.

    Args:
        table: for the rows.
        picture: a file; its suffix says how.
        shards: seconds of each way by number of shards, of ``size`` bytes in all.
        size: see there.
        sizes: seconds of each way by bytes, of 16 shards.
        plans: seconds of planning by number of shards.
    """
    table.title(f"cost against shards and bytes: {picture}")
    _row(table, f"merging {size / 1e9:g} GB by shards", _column(shards, "verified"), 1, "shard")
    _row(table, "merging 16 shards by bytes", _column(sizes, "verified"), 1e9, "GB")
    _row(table, "planning by shards", plans, 1, "shard")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("  no picture: pip install 'rose-hpc[plot]'")
        return
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for way in WAYS:
        left.plot(list(shards), list(_column(shards, way).values()), "o-", label=way)
        middle.plot([size / 1e9 for size in sizes], list(_column(sizes, way).values()), "o-", label=way)
    right.plot(list(plans), list(plans.values()), "o-", label="planning")
    left.set(title=f"merging {size / 1e9:g} GB", xlabel="shards", ylabel="seconds")
    middle.set(title="merging 16 shards", xlabel="GB")
    right.set(title="planning, 10 columns", xlabel="shards")
    for axes in (left, middle, right):
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.legend()
    figure.savefig(picture)


def _column(taken: Mapping[float, Mapping[str, float]], way: str) -> dict[float, float]:
    return {key: ways[way] for key, ways in taken.items()}


def _row(table: Table, what: str, taken: Mapping[float, float], unit: float, name: str) -> None:
    x, y = np.array([*taken]) / unit, np.array([*taken.values()])
    slope, start = np.polyfit(x, y, 1)
    explained = 1 - ((y - start - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    line = f"{start * 1e3:.1f} ms and {slope * 1e3:.3g} ms a {name}"
    # where little grows, little is to be explained: what is left is how much one run differs from another
    off = np.max(np.abs(y / (start + slope * x) - 1))
    straight = explained >= STRAIGHT or off <= NEAR
    table.row(
        what, f"R2 {explained:.3f}", f"{line}; at most {100 * off:.0f} % off", "", "a straight line", bool(straight)
    )
