"""Running statistics of a column, taken over blocks of fixed size and combined exactly.

Blocks are combined by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances" (1979). A block's size follows from the shape of a row alone, so the same rows give the same statistics in
whatever pieces they arrived.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: rows with more elements than this get one set of statistics over all elements
MAX_ELEMENTS = 4096
#: elements in a block: their float64 copy stays in a core's own cache
_BLOCK_ELEMENTS = 65_536
#: NumPy reduces rows of fewer elements than this slowly, so they are laid side by side first
_WIDE = 1024


@dataclass(frozen=True, eq=False)
class Stats:
    """Statistics of a column: float64 arrays of a row's shape, or of shape () for rows of more than 4,096 elements.

    Attributes:
        count: values seen, NaNs left out; where it is 0, mean, min and max are NaN.
        mean: their mean.
        m2: the sum of their squared distances from the mean.
        min: the least.
        max: the greatest.
        nans: NaNs seen.
    """

    count: Array
    mean: Array
    m2: Array
    min: Array
    max: Array
    nans: Array

    @property
    def std(self) -> Array:
        """Population standard deviation; NaN where nothing was counted."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(self.m2 / self.count))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stats):
            return NotImplemented
        return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(self.arrays(), other.arrays(), strict=True))

    def arrays(self) -> tuple[Array, ...]:
        """The six arrays, in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def to_json(self) -> dict[str, list[float | str]]:
        """Plain data: flat lists; ``"nan"``, ``"inf"`` and ``"-inf"``, which JSON has no numbers for, are strings."""
        return {
            field.name: [value if math.isfinite(value) else repr(value) for value in array.ravel().tolist()]
            for field, array in zip(fields(self), self.arrays(), strict=True)
        }

    @staticmethod
    def from_json(data: dict[str, Any], shape: tuple[int, ...]) -> Stats:
        """The inverse of :meth:`to_json`, for a column with rows of ``shape``."""
        arrays = {name: np.array([float(value) for value in data[name]]) for name in STATS_FIELDS}
        return Stats(**{name: array.reshape(stats_shape(shape)) for name, array in arrays.items()})


STATS_FIELDS = tuple(field.name for field in fields(Stats))


def stats_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the statistics of a column with rows of ``shape``."""
    return shape if math.prod(shape) <= MAX_ELEMENTS else ()


def block_rows(shape: tuple[int, ...]) -> int:
    """How many rows of ``shape`` make a block (part of the format, as rounding depends on it)."""
    return max(1, _BLOCK_ELEMENTS // math.prod(shape))


def empty_stats(shape: tuple[int, ...]) -> Stats:
    """The statistics of no rows of ``shape``."""
    zeros, nans = np.zeros(stats_shape(shape)), np.full(stats_shape(shape), np.nan)
    return Stats(count=zeros, mean=nans, m2=zeros, min=nans, max=nans, nans=zeros)


def stats_of_block(block: NDArray[Any]) -> Stats:
    """The statistics of one block (C-contiguous, first axis rows, at least one row, at most :func:`block_rows`)."""
    shape = stats_shape(block.shape[1:])
    values = block.reshape(-1, math.prod(shape))
    rows, width = values.shape
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are data: inf - inf is NaN, and may be
        total = _over_rows(np.add, values.astype(np.float64), width)
        missing = np.isnan(total)
        if missing.any() and np.isnan(values).any():
            return _stats_with_nans(values.astype(np.float64), shape)
        mean = total / rows
        distance = values - mean if rows * width < _WIDE else _minus(values, mean)
        m2 = _over_rows(np.add, np.multiply(distance, distance, out=distance), width)
        low, high = (_over_rows(f, values, width).astype(np.float64) for f in (np.minimum, np.maximum))
    count, nans = np.full(width, float(rows)), np.zeros(width)
    return Stats(*(array.reshape(shape) for array in (count, mean, m2, low, high, nans)))


def combine(parts: Iterable[Stats], shape: tuple[int, ...]) -> Stats:
    """The statistics of all rows of ``parts`` together, in their order."""
    return reduce(_combine_two, parts, empty_stats(shape))


def stats_of(column: NDArray[Any]) -> Stats:
    """The statistics of a whole column, first axis rows."""
    stream, step = StatsStream(column.shape[1:]), block_rows(column.shape[1:])
    for start in range(0, len(column), step):
        stream.add(column[start : start + step])
    return stream.stats


class StatsStream:
    """Statistics of a column whose rows come in blocks: all but the last of :func:`block_rows` rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.stats = empty_stats(shape)

    def add(self, block: NDArray[Any]) -> None:
        """Take the next block."""
        self.stats = _combine_two(self.stats, stats_of_block(block))


def _folds(rows: int, width: int) -> int:
    return max(1, min(rows, _WIDE // width))


def _over_rows(function: np.ufunc, values: NDArray[Any], width: int) -> NDArray[Any]:
    """Reduce the rows of a 2-D array: rows laid side by side first, then the few that are left, one on another."""
    rows = len(values)
    folds = _folds(rows, width)
    whole = rows - rows % folds
    wide = function.reduce(values[:whole].reshape(-1, folds * width), axis=0)
    result = function.reduce(wide.reshape(folds, width), axis=0)
    if whole < rows:
        result = function(result, function.reduce(values[whole:], axis=0))
    return np.asarray(result)


def _minus(values: NDArray[Any], mean: Array) -> Array:
    """``values - mean`` in float64, folded like :func:`_over_rows`: NumPy broadcasts narrow rows slowly too."""
    rows, width = values.shape
    folds = _folds(rows, width)
    whole = rows - rows % folds
    result = np.empty(values.shape)
    np.subtract(
        values[:whole].reshape(-1, folds * width), np.tile(mean, folds), out=result[:whole].reshape(-1, folds * width)
    )
    np.subtract(values[whole:], mean, out=result[whole:])
    return result


def _stats_with_nans(values: Array, shape: tuple[int, ...]) -> Stats:
    """The slow way, for the rare block with NaNs; the caller has set ``errstate``."""
    missing = np.isnan(values)
    nans = missing.sum(axis=0, dtype=np.float64)
    count = len(values) - nans
    mean = np.where(missing, 0.0, values).sum(axis=0) / np.where(count, count, np.nan)
    m2 = np.where(missing, 0.0, (values - mean) ** 2).sum(axis=0)
    low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
    return Stats(*(array.reshape(shape) for array in (count, mean, m2, low, high, nans)))


def _combine_two(a: Stats, b: Stats) -> Stats:
    count = a.count + b.count
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        delta = b.mean - a.mean
        mean = a.mean + delta * (b.count / count)
        m2 = a.m2 + b.m2 + delta * delta * (a.count * b.count / count)
    for has_none, other in ((a.count == 0, b), (b.count == 0, a)):
        mean = np.where(has_none, other.mean, mean)
        m2 = np.where(has_none, other.m2, m2)
    arrays = (count, mean, m2, np.fmin(a.min, b.min), np.fmax(a.max, b.max), a.nans + b.nans)
    return Stats(*map(np.asarray, arrays))
