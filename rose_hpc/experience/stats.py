"""Running statistics of a column, taken over blocks of fixed size and combined exactly.

Any number of parts is combined at once, as Chan, Golub and LeVeque combine two ("Updating formulae and a pairwise
algorithm for computing sample variances", 1979). A block's size follows from the shape of a row alone, so the same rows
give the same statistics in whatever pieces they arrived.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: of :class:`Stats`, in order
STATS_FIELDS = ("count", "mean", "m2", "min", "max", "nans")
#: rows with more elements than this get one set of statistics over all elements
MAX_ELEMENTS = 4096
#: elements in a block: their float64 copy stays in a core's own cache
_BLOCK_ELEMENTS = 65_536
#: NumPy reduces rows of fewer elements than this slowly, so they are laid side by side first
_WIDE = 1024
#: so many parts are combined at once (part of the format, for the same reason)
_PARTS = 128
#: where squared distances from the mean are less than this part of the squares, their sum is taken from the distances
#: themselves: the difference of two large sums would have lost more than 3 of its 16 digits
_CLOSE = 1e-3
_local = threading.local()


@dataclass(frozen=True, eq=False, slots=True)
class Stats:
    """Statistics of a column, per element of a row; over all elements for rows of more than 4,096.

    Each of them is a float64 array of a row's shape, or of shape ().

    Attributes:
        values: all six, one after another: ``count, mean, m2, min, max, nans``.
    """

    values: Array

    @staticmethod
    def of(count: Any, mean: Any, m2: Any, low: Any, high: Any, nans: Any) -> Stats:
        """From the six."""
        return Stats(np.array((count, mean, m2, low, high, nans), np.float64))

    @property
    def count(self) -> Array:
        """Values seen, NaNs left out; where it is 0, mean, min and max are NaN."""
        return self.values[0, ...]

    @property
    def mean(self) -> Array:
        """Their mean."""
        return self.values[1, ...]

    @property
    def m2(self) -> Array:
        """The sum of their squared distances from the mean."""
        return self.values[2, ...]

    @property
    def min(self) -> Array:
        """The least."""
        return self.values[3, ...]

    @property
    def max(self) -> Array:
        """The greatest."""
        return self.values[4, ...]

    @property
    def nans(self) -> Array:
        """NaNs seen."""
        return self.values[5, ...]

    @property
    def std(self) -> Array:
        """Population standard deviation; NaN where nothing was counted."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(self.m2 / self.count))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stats):
            return NotImplemented
        return np.array_equal(self.values, other.values, equal_nan=True)

    def to_json(self) -> dict[str, list[float | str]]:
        """Plain data: flat lists; ``"nan"``, ``"inf"`` and ``"-inf"``, which JSON has no numbers for, are strings."""
        return {
            name: [value if math.isfinite(value) else repr(value) for value in array.ravel().tolist()]
            for name, array in zip(STATS_FIELDS, self.values, strict=True)
        }

    @staticmethod
    def from_json(data: dict[str, Any], shape: tuple[int, ...]) -> Stats:
        """The inverse of :meth:`to_json`, for a column with rows of ``shape``."""
        values = np.array([[float(value) for value in data[name]] for name in STATS_FIELDS])
        return Stats(values.reshape(len(STATS_FIELDS), *stats_shape(shape)))


def stats_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the statistics of a column with rows of ``shape``."""
    return shape if math.prod(shape) <= MAX_ELEMENTS else ()


def stats_size(shape: tuple[int, ...]) -> int:
    """How many numbers the statistics of a column with rows of ``shape`` are."""
    return len(STATS_FIELDS) * math.prod(stats_shape(shape))


def block_rows(shape: tuple[int, ...]) -> int:
    """How many rows of ``shape`` make a block (part of the format, as rounding depends on it)."""
    return max(1, _BLOCK_ELEMENTS // math.prod(shape))


def empty_stats(shape: tuple[int, ...]) -> Stats:
    """The statistics of no rows of ``shape``."""
    values = np.zeros((len(STATS_FIELDS), *stats_shape(shape)))
    values[[1, 3, 4]] = np.nan
    return Stats(values)


def stats_of_block(block: NDArray[Any]) -> Stats:
    """The statistics of one block (C-contiguous, first axis rows, at least one row, at most :func:`block_rows`)."""
    shape = stats_shape(block.shape[1:])
    values = block.reshape(-1, math.prod(shape))
    rows, width = values.shape
    space = _space(values.shape)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are data: inf - inf is NaN, and may be
        floats: Array = values
        if values.dtype != np.float64:
            np.copyto(space, values)
            floats = space
        total = _over_rows(np.add, floats, width)
        if np.isnan(total).any() and np.isnan(values).any():
            return _stats_with_nans(values.astype(np.float64), shape)
        mean = total / rows
        m2 = _sum_of_squares(floats, width) - total * mean
        if (m2 < _CLOSE * total * mean).any() or not np.isfinite(m2).all():  # digits were lost: the slower way
            distance = _minus(floats, mean, space)
            m2 = _over_rows(np.add, np.multiply(distance, distance, out=distance), width)
        low, high = (_over_rows(f, values, width).astype(np.float64) for f in (np.minimum, np.maximum))
    count, nans = np.full(width, float(rows)), np.zeros(width)
    return Stats.of(*(array.reshape(shape) for array in (count, mean, m2, low, high, nans)))


def _space(shape: tuple[int, ...]) -> Array:
    """Room for a block of floats, the same for all of a thread: new memory costs more than what is done in it."""
    size = math.prod(shape)
    if getattr(_local, "space", np.empty(0)).size < size:
        _local.space = np.empty(max(size, _BLOCK_ELEMENTS))
    space: Array = _local.space[:size].reshape(shape)
    return space


def combine(parts: Iterable[Stats], shape: tuple[int, ...]) -> Stats:
    """The statistics of all rows of ``parts`` together, which are of rows of ``shape``."""
    total, waiting = empty_stats(shape).values, iter(parts)
    while group := [part.values for part in islice(waiting, _PARTS)]:
        total = _combined(np.stack([total, *group]))
    return Stats(total)


def stats_of(column: NDArray[Any]) -> Stats:
    """The statistics of a whole column, first axis rows."""
    stream, step = StatsStream(column.shape[1:]), block_rows(column.shape[1:])
    for start in range(0, len(column), step):
        stream.add(column[start : start + step])
    return stream.stats


class StatsStream:
    """Statistics of a column whose rows come in blocks: all but the last of :func:`block_rows` rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._parts = [empty_stats(shape)]

    def add(self, block: NDArray[Any]) -> None:
        """Take the next block."""
        self._parts.append(stats_of_block(block))
        if len(self._parts) == _PARTS:
            self._parts = [self.stats]

    @property
    def stats(self) -> Stats:
        """Of all blocks so far."""
        return Stats(_combined(np.stack([part.values for part in self._parts])))


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


def _sum_of_squares(values: Array, width: int) -> Array:
    """Of each column of a 2-D array, rows laid side by side first."""
    folds = _folds(len(values), width)
    whole = len(values) - len(values) % folds
    wide = values[:whole].reshape(-1, folds * width)
    result: Array = np.einsum("ij,ij->j", wide, wide).reshape(folds, width).sum(axis=0)
    result += np.einsum("ij,ij->j", values[whole:], values[whole:])
    return result


def _minus(values: Array, mean: Array, out: Array) -> Array:
    """``values - mean`` into ``out``, folded like :func:`_over_rows`: NumPy broadcasts narrow rows slowly too."""
    rows, width = values.shape
    folds = _folds(rows, width)
    whole, folded = rows - rows % folds, (-1, folds * width)
    np.subtract(values[:whole].reshape(folded), np.tile(mean, folds), out=out[:whole].reshape(folded))
    np.subtract(values[whole:], mean, out=out[whole:])
    return out


def _stats_with_nans(values: Array, shape: tuple[int, ...]) -> Stats:
    """The slow way, for the rare block with NaNs; the caller has set ``errstate``."""
    missing = np.isnan(values)
    nans = missing.sum(axis=0, dtype=np.float64)
    count = len(values) - nans
    mean = np.where(missing, 0.0, values).sum(axis=0) / np.where(count, count, np.nan)
    m2 = np.where(missing, 0.0, (values - mean) ** 2).sum(axis=0)
    low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
    return Stats.of(*(array.reshape(shape) for array in (count, mean, m2, low, high, nans)))


def _combined(parts: Array) -> Array:
    """The sum of statistics: ``(parts, 6, *shape)`` to ``(6, *shape)``."""
    count, mean, m2, low, high, nans = np.moveaxis(parts, 1, 0)
    total, seen = count.sum(axis=0), count > 0
    first = np.fmax.reduce(mean, axis=0)
    first = np.where(np.isfinite(first), first, 0.0)  # distances from it lose no digits to a mean far from zero
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        away = np.where(seen, mean - first, 0.0)
        middle = (count * away).sum(axis=0) / total
        spread = np.where(seen, m2 + count * (away - middle) ** 2, 0.0)
    least, greatest = np.fmin.reduce(low, axis=0), np.fmax.reduce(high, axis=0)
    return np.stack((total, first + middle, spread.sum(axis=0), least, greatest, nans.sum(axis=0)))
