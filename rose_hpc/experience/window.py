"""Columns as arrays over their files, and those of several files seen as one array without copying it."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from rose_hpc.errors import DamagedError, ExperienceError
from rose_hpc.experience.files import UnreadableError, opened
from rose_hpc.experience.schema import Column, ShardInfo
from rose_hpc.refusals import named


class WindowColumn(NDArrayOperatorsMixin):
    """A read-only column over several arrays of one dtype and row shape.

    Indexing works as for an array: an integer gives a row, a slice within one part a view, anything else a copy of just
    the rows that were asked for. ``np.asarray(column)`` copies all of it, as do operators and the methods of an array
    (``column.mean()``): where a window is larger than memory, take it in slices.

    Attributes:
        parts: the arrays, in order; at least one.
    """

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self.parts = tuple(parts)
        self._starts = np.array([0, *accumulate(len(part) for part in parts)], dtype=np.int64)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return (len(self), *self.parts[0].shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.parts[0].ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all elements."""
        return self.size * self.dtype.itemsize

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        whole = np.asarray(self)
        whole.setflags(write=False)  # like the column itself: what would change it is refused
        return getattr(whole, name)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(out, WindowColumn) for out in options.get("out", ())):
            raise ValueError("a window is read-only")
        arrays = [np.asarray(each) if isinstance(each, WindowColumn) else each for each in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts:
            yield from part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a window lies in several files; as one array it is a copy")
        whole = np.concatenate(self.parts)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            rows = self[key[0]] if key else np.asarray(self)
            return rows[key[1:]] if isinstance(key[0], int | np.integer) else rows[(slice(None), *key[1:])]
        if isinstance(key, int | np.integer):
            return self._row(int(key))
        if isinstance(key, slice):
            return self._slice(key)
        index = np.asarray(key)
        index = index if index.size else index.astype(np.int64)  # an empty list is floats to NumPy
        if index.dtype == np.bool_ and index.shape != (len(self),):
            raise IndexError(f"a mask of shape {index.shape} for {len(self)} rows")
        return self._take(np.flatnonzero(index) if index.dtype == np.bool_ else index)

    def _row(self, row: int) -> Any:
        at = row + len(self) if row < 0 else row
        if not 0 <= at < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        part = int(np.searchsorted(self._starts, at, side="right")) - 1
        return self.parts[part][at - self._starts[part]]

    def _slice(self, key: slice) -> NDArray[Any]:
        start, stop, step = key.indices(len(self))
        if step != 1:
            return self._take(np.arange(start, stop, step))
        if start >= stop:
            return self.parts[0][:0]
        first, last = (np.searchsorted(self._starts, (start, stop - 1), side="right") - 1).tolist()
        found = []
        for number in range(first, last + 1):
            shift = int(self._starts[number])
            found.append(self.parts[number][max(start - shift, 0) : stop - shift])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _take(self, index: NDArray[Any]) -> NDArray[Any]:
        rows = np.where(index < 0, index + len(self), index)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows beyond the {len(self)} of the window")
        result = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for number, part in enumerate(self.parts):
            mine = owner == number
            result[mine] = part[rows[mine] - self._starts[number]]
        return result


def as_one(parts: Sequence[NDArray[Any]], column: Column) -> Any:
    """What is like one array over any number of parts of a column."""
    if not parts:
        return np.empty((0, *column.shape), np.dtype(column.dtype))
    return parts[0] if len(parts) == 1 else WindowColumn(parts)


def map_columns(part: ShardInfo, skip: int = 0) -> Mapping[str, NDArray[Any]]:
    """The columns of a file, but for its first ``skip`` rows, as read-only arrays over it."""
    try:
        with named(ExperienceError, f"cannot read {part.path}"), opened(part.path) as fd:
            view = _map_file(fd, part)
    except UnreadableError as error:
        raise ExperienceError(f"cannot read {part.path}: {error}", hint=error.hint) from error
    return {
        name: np.ndarray((part.rows, *column.shape), np.dtype(column.dtype), buffer=view, offset=column.offset)[skip:]
        for name, column in part.columns.items()
    }


def _map_file(fd: int, part: ShardInfo) -> mmap.mmap:
    size = os.fstat(fd).st_size
    # Reading a mapping beyond the end of its file kills the process, so what the header says is checked once more.
    for name, column in part.columns.items():
        if column.offset < 0 or column.offset + part.rows * column.row_bytes > size:
            text = f"{part.path} is damaged: column '{name}' reaches beyond its end"
            raise DamagedError(text, paths=[str(part.path)])
    return mmap.mmap(fd, size, access=mmap.ACCESS_READ)
