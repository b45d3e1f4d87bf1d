"""Reading experience: banks and shards as arrays over the file itself, one or several seen as one."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import DamagedError, ExperienceError, SchemaError
from rose_hpc.experience.files import opened
from rose_hpc.experience.schema import Column, ShardInfo, difference
from rose_hpc.experience.stats import Stats, combine
from rose_hpc.experience.window import WindowColumn

#: rows turned into dicts at once when a bank is iterated
_ROWS_AT_ONCE = 1024


class ExperienceBank:
    """Experience, read in place: a bank, a shard, or several of them as one (a window); see :meth:`open`.

    ``len(bank)`` is the number of rows. ``bank["rewards"]`` is a read-only array over the file for one part; for a
    window it is a :class:`WindowColumn`, which slices and indexes like an array and copies only what is asked for.

    Attributes:
        columns: the names of the columns.
        parts: what is known of each file, oldest first.
    """

    def __init__(self, parts: Sequence[ShardInfo]) -> None:
        full = [part for part in parts if part.rows]
        model = (full or [part for part in parts if part.columns] or list(parts))[0]
        for part in full:
            if text := difference(model.columns, part.columns):
                raise SchemaError(f"{part.path} has {text}", hint=f"a window needs the columns of {model.path}")
        self.parts = tuple(parts)
        self.columns = tuple(model.columns)
        self._schema = model.columns
        self._starts = np.array([0, *accumulate(part.rows for part in full)], dtype=np.int64)
        self._rows = int(self._starts[-1])
        self._rng: np.random.Generator | None = None
        maps = [_map(part) for part in full]
        arrays = {name: [columns[name] for columns in maps] for name in self.columns}
        self._arrays = {name: _as_one(parts, self._schema[name]) for name, parts in arrays.items()}
        self._is_window = len(full) > 1
        self._closed = False

    @classmethod
    def open(cls, path: str | Path | Sequence[str | Path]) -> ExperienceBank:
        """Open a bank or shard, or several, oldest first, as one. Nothing is read or copied but the files' headers.

        Raises:
            FormatError: not a bank or shard.
            DamagedError: cut short, or its header altered. Bytes of columns are not verified here.
            SchemaError: parts with other columns, dtypes or shapes.
        """
        from rose_hpc.experience.format import read_info  # here: h5py is needed for opening only

        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        if not paths:
            raise ExperienceError("there is no bank to open", hint="give at least one path")
        return cls([read_info(Path(each)) for each in paths])

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, column: str) -> Any:
        self._check_open()
        try:
            return self._arrays[column]
        except KeyError:
            hint = f"it has {', '.join(self.columns) or 'none'}"
            raise SchemaError(f"{self._name} has no column {column!r}", hint=hint) from None

    def __contains__(self, column: object) -> bool:
        return column in self._arrays

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every row, as a dict of scalars and arrays."""
        for batch in self.batches(_ROWS_AT_ONCE):
            for row in zip(*batch.values(), strict=True):
                yield dict(zip(batch, row, strict=True))

    def batches(self, size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """All rows in order, as dicts of arrays of ``size`` rows; the last may be shorter.

        Raises:
            ExperienceError: for a size that is not positive.
        """
        if size < 1:
            raise ExperienceError(f"batches of {size} rows", hint="give a positive size")
        self._check_open()
        for start in range(0, self._rows, size):
            yield {name: array[start : start + size] for name, array in self._arrays.items()}

    def sample(
        self, n: int, rng: np.random.Generator | int | None = None, replace: bool = True
    ) -> dict[str, NDArray[Any]]:
        """``n`` random rows, each as likely as any other; new arrays, the same for the same state of ``rng``.

        Args:
            n: how many.
            rng: a generator, a seed, or None for the bank's own, which starts anywhere.
            replace: whether a row may come twice.

        Raises:
            ExperienceError: no rows, or fewer than ``n`` without ``replace``.
        """
        self._check_open()
        if not self._rows:
            raise ExperienceError(f"{self._name} has no rows to sample", hint="did the environments write any?")
        if n < 0 or (n > self._rows and not replace):
            raise ExperienceError(f"cannot sample {n} of the {self._rows} rows of {self._name} without replacement")
        generator = self._generator(rng)
        rows = generator.integers(0, self._rows, n) if replace else generator.choice(self._rows, n, replace=False)
        if self._is_window:
            return self._take_from_parts(rows)
        return {name: array.take(rows, axis=0) for name, array in self._arrays.items()}

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the shards that the rows came from, in the order of the rows."""
        return tuple(name for part in self.parts for name in part.shard_names)

    @property
    def shard_offsets(self) -> NDArray[np.int64]:
        """Where each shard's rows start, and the end of the last: int64, one more than there are shards."""
        lengths = [np.diff(part.shard_offsets) for part in self.parts]
        return np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)

    def stats(self, column: str) -> Stats:
        """The statistics of a column, combined from the files' own; no row is read.

        Raises:
            SchemaError: no such column.
            ExperienceError: a part without statistics.
        """
        _ = self[column]
        parts = [part.columns[column].stats for part in self.parts if part.rows]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            raise ExperienceError(f"{self._name} has no statistics of '{column}'")
        return combine(known, self._schema[column].shape)

    def close(self) -> None:
        """Let go of the files. Arrays that were handed out keep theirs, for as long as they live."""
        self._arrays = {}
        self._closed = True

    def __enter__(self) -> ExperienceBank:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _name(self) -> str:
        first = str(self.parts[0].path)
        return first if len(self.parts) == 1 else f"the window from {first}"

    def _check_open(self) -> None:
        if self._closed:
            raise ExperienceError(f"{self._name} is closed", hint="open it again")

    def _generator(self, rng: np.random.Generator | int | None) -> np.random.Generator:
        if isinstance(rng, np.random.Generator):
            return rng
        if rng is not None:
            return np.random.default_rng(rng)
        if self._rng is None:
            self._rng = np.random.default_rng()
        return self._rng

    def _take_from_parts(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Rows of a window: taken part by part, then put into the order they were drawn in."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        ends = np.searchsorted(ordered, self._starts).tolist()
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        local = [ordered[a:b] - start for a, b, start in zip(ends, ends[1:], self._starts, strict=False)]
        return {
            name: np.concatenate([p.take(i, axis=0) for p, i in zip(array.parts, local, strict=True)]).take(
                back, axis=0
            )
            for name, array in self._arrays.items()
        }


def _as_one(parts: Sequence[NDArray[Any]], column: Column) -> Any:
    if not parts:
        return np.empty((0, *column.shape), np.dtype(column.dtype))
    return parts[0] if len(parts) == 1 else WindowColumn(parts)


def _map(part: ShardInfo) -> Mapping[str, NDArray[Any]]:
    """The columns of a file as read-only arrays over it."""
    with opened(part.path) as fd:
        size = os.fstat(fd).st_size
        # Reading a mapping beyond the end of its file kills the process, so what the header says is checked once more.
        for name, column in part.columns.items():
            if column.offset < 0 or column.offset + part.rows * column.row_bytes > size:
                text = f"{part.path} is damaged: column '{name}' reaches beyond its end"
                raise DamagedError(text, paths=[str(part.path)])
        view = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    return {
        name: np.ndarray((part.rows, *column.shape), np.dtype(column.dtype), buffer=view, offset=column.offset)
        for name, column in part.columns.items()
    }
