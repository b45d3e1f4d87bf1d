"""A column of several files, seen as one array without copying it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray


class WindowColumn:
    """A read-only column over several arrays of one dtype and row shape.

    Indexing works as for an array: an integer gives a row, a slice within one part a view, anything else a copy of just
    the rows that were asked for. ``np.asarray(column)`` copies all of it.

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
        found = [
            part[max(start - first, 0) : max(stop - first, 0)]
            for part, first in zip(self.parts, self._starts[:-1].tolist(), strict=True)
        ]
        found = [part for part in found if len(part)] or [self.parts[0][:0]]
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
