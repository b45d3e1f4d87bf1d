"""A picture of returns: per episode and environment, over all files that were given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import UsageError
from rose_hpc.experience.schema import ShardInfo
from rose_hpc.experience.summary import episodes_of

#: environments that get a name in the picture
_NAMED = 20
#: episodes under one point of an environment's mean line
_SMOOTH = 20

Series = dict[str, NDArray[np.float64]]


def returns_by_environment(infos: Sequence[ShardInfo]) -> Series:
    """The returns of all episodes that ended, in the order of the files, by environment.

    Raises:
        UsageError: when there are none.
        DamagedError: for a file that ends early.
    """
    found: dict[str, list[NDArray[np.float64]]] = {}
    for info in infos:
        episodes = episodes_of(info)
        for number, name in enumerate(info.shard_names if episodes is not None else ()):
            here = episodes.between(*info.shard_offsets[number : number + 2])  # type: ignore[union-attr]  # not None
            found.setdefault(name, []).append(here.returns[here.ended])
    series = {name: np.concatenate(parts) for name, parts in found.items()}
    if not any(len(returns) for returns in series.values()):
        raise UsageError("there is nothing to plot: no episode ended", hint="terminations and truncations tell the end")
    return series


def plot_returns(infos: Sequence[ShardInfo], path: Path) -> None:
    """Draw them into a file; its suffix says how (.png, .svg, .pdf).

    Raises:
        UsageError: nothing to plot, no matplotlib, or a suffix it does not know.
        ExperienceError: for a file that cannot be read.
    """
    try:
        from matplotlib.figure import Figure  # here: only pictures need it, and it is an optional extra
    except ImportError as error:
        raise UsageError("plotting needs matplotlib", hint="pip install 'rose-hpc[plot]'") from error
    series = returns_by_environment(infos)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="episode", ylabel="return")
    for number, (name, returns) in enumerate(series.items()):
        color, episode = f"C{number % 10}", np.arange(len(returns))
        axes.plot(episode, returns, ".", color=color, markersize=2, alpha=0.3)
        width = max(1, min(_SMOOTH, len(returns)))
        mean = np.convolve(returns, np.full(width, 1 / width), mode="valid")
        axes.plot(episode[width - 1 :], mean, color=color, label=name if number < _NAMED else None)
    axes.legend(loc="best", fontsize="small")
    axes.set_title(f"{sum(map(len, series.values())):,} episodes of {len(series)} environments; lines: mean of 20")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UsageError(f"cannot draw {path}: {error}", hint="name a .png, .svg or .pdf") from error
