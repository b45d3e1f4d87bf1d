"""What a column takes: its dtype and shape follow from the first value, later ones must fit.

Python's own numbers are weak, as in NumPy (NEP 50): an int or float takes the dtype of its column if its kind fits.
Arrays and NumPy's scalars must have the column's dtype exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import SchemaError
from rose_hpc.experience.schema import FLAGS, REWARDS, Column, check_dtype, check_name, dtype_name

#: kinds of Python values (their arrays' kinds) that a column of a kind takes
_WEAK = {"b": "b", "i": "i", "u": "iu", "f": "iuf"}
_PYTHON_TYPES: dict[str, type] = {"bool": bool, "int64": int, "float64": float}


class Cell:
    """The dtype and shape of one column, and how values become rows of it.

    Args:
        name: of the column.
        first: a row, or rows, of it.
        rows: whether ``first`` has an axis of rows.

    Raises:
        SchemaError: when no column can be made of it.
    """

    def __init__(self, name: str, first: Any, *, rows: bool) -> None:
        check_name(name)
        array = self._as_array(name, first)
        if rows and not array.ndim:
            raise SchemaError(
                f"column '{name}' was given one value to extend by", hint="give arrays; the first axis is rows"
            )
        self.name = name
        self.shape = array.shape[1:] if rows else array.shape
        self.dtype = _column_dtype(name, array.dtype)
        if 0 in self.shape:
            raise SchemaError(f"column '{name}' would have rows without elements, of shape {self.shape}")
        self.accepts = frozenset[type]() if self.shape else self._scalar_types()
        self.stage = np.empty((0, *self.shape), self.dtype)

    def column(self) -> Column:
        """As data."""
        return Column(dtype_name(self.dtype), self.shape)

    def convert(self, value: Any, *, rows: bool = False) -> NDArray[Any]:
        """A row, or rows, for this column.

        Raises:
            SchemaError: naming the column, what it has and what was given.
        """
        array = self._as_array(self.name, value)
        fits = array.shape[1:] == self.shape and array.ndim > 0 if rows else array.shape == self.shape
        if fits and array.dtype == self.dtype:
            return array
        weak = not isinstance(value, np.ndarray | np.generic)
        if fits and (self._weakly(array, weak) or self._loosely(array)):
            try:
                return np.asarray(value, dtype=self.dtype)
            except OverflowError as error:
                raise SchemaError(f"column '{self.name}' is {self.dtype}: {error}") from error
        given = Column(dtype_name(array.dtype), array.shape[1:] if rows else array.shape).describe()
        raise SchemaError(
            f"column '{self.name}' is {self.column().describe()}, but was given {given}",
            hint="dtype and shape are fixed by the first row",
        )

    def _weakly(self, array: NDArray[Any], weak: bool) -> bool:
        return (weak or not array.size) and array.dtype.kind in _WEAK[self.dtype.kind]

    def _loosely(self, array: NDArray[Any]) -> bool:
        """Rewards may be integers, and flags 0 and 1: that is what they are in other languages."""
        if self.name == REWARDS:
            return array.dtype.kind in "biu"
        return self.name in FLAGS and array.dtype.kind in "iu" and bool(((array == 0) | (array == 1)).all())

    def _scalar_types(self) -> frozenset[type]:
        own: set[type] = {self.dtype.type}
        if python_type := _PYTHON_TYPES.get(self.dtype.name):
            own.add(python_type)
        if self.name == REWARDS:
            own.add(int)
        return frozenset(own)

    @staticmethod
    def _as_array(name: str, value: Any) -> NDArray[Any]:
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError) as error:
            raise SchemaError(f"column '{name}': {error}") from error
        check_dtype(name, array.dtype)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _column_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    if name == REWARDS and dtype.kind in "biu":
        return np.dtype(np.float64)
    if name in FLAGS and dtype.kind in "biu":
        return np.dtype(np.bool_)
    if name in (REWARDS, *FLAGS) and dtype.kind != ("f" if name == REWARDS else "b"):
        raise SchemaError(f"column '{name}' would be {dtype}", hint="rewards are floating; the flags are bool")
    return np.dtype(dtype.name)  # NumPy's own object for it, which append() can compare by identity
