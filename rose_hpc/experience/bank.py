"""Reading experience: banks and shards as arrays over the file itself, one or several seen as one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import ExperienceError, SchemaError
from rose_hpc.experience.episodes import Episodes, joined, read_episodes
from rose_hpc.experience.header import read_info
from rose_hpc.experience.replay import Draws, rows_of
from rose_hpc.experience.replay import ahead as draw_ahead
from rose_hpc.experience.schema import ShardInfo, difference
from rose_hpc.experience.stats import Stats, combine, stats_of
from rose_hpc.experience.window import as_one, map_columns

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

    def __init__(self, parts: Sequence[ShardInfo], max_rows: int | None = None) -> None:
        if max_rows is not None and max_rows < 1:
            raise ExperienceError(f"max_rows is {max_rows}", hint="give at least 1, or None for all rows")
        full = [part for part in parts if part.rows]
        model = (full or [part for part in parts if part.columns] or list(parts))[0]
        for part in full:
            if text := difference(model.columns, part.columns):
                raise SchemaError(f"{part.path} has {text}", hint=f"a window needs the columns of {model.path}")
        self.parts = tuple(parts)
        self.columns = tuple(model.columns)
        self._schema = model.columns
        total = sum(part.rows for part in full)
        self._dropped = max(0, total - max_rows) if max_rows else 0  # the oldest rows, wherever they lie
        skips = np.clip(
            self._dropped - np.array([0, *accumulate(p.rows for p in full)][:-1]), 0, [p.rows for p in full]
        )
        self._views = [(part, int(skip)) for part, skip in zip(full, skips, strict=True) if skip < part.rows]
        self._starts = np.array([0, *accumulate(part.rows - skip for part, skip in self._views)], dtype=np.int64)
        self._rows = int(self._starts[-1])
        self._rng: np.random.Generator | None = None
        self._episodes: Episodes | None = None
        self._draws: Draws | None = None
        maps = [map_columns(part, skip) for part, skip in self._views]
        arrays = {name: [columns[name] for columns in maps] for name in self.columns}
        self._arrays = {name: as_one(parts, self._schema[name]) for name, parts in arrays.items()}
        self._is_window = len(self._views) > 1
        self._closed = False

    @classmethod
    def open(cls, path: str | Path | Sequence[str | Path], *, max_rows: int | None = None) -> ExperienceBank:
        """Open a bank or shard, or several, oldest first, as one. Nothing is read or copied but the files' headers.

        Args:
            path: one file, or several.
            max_rows: see only the newest (last) so many rows.

        Raises:
            FormatError: not a bank or shard.
            DamagedError: cut short, or its header altered. Bytes of columns are not verified here.
            SchemaError: parts with other columns, dtypes or shapes.
        """
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        if not paths:
            raise ExperienceError("there is no bank to open", hint="give at least one path")
        return cls([read_info(Path(each)) for each in paths], max_rows)

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
        return self._take(rows)

    def sample_episodes(
        self, n: int, rng: np.random.Generator | int | None = None, replace: bool = True
    ) -> list[dict[str, NDArray[Any]]]:
        """``n`` random whole episodes, each as likely as any other: for each, its rows as new arrays.

        Raises:
            ExperienceError: none ended, fewer than ``n`` did without ``replace``, or no column tells.
        """
        episodes = self.episodes
        chosen = self._drawn.episodes(n, self._generator(rng), replace)
        spans = zip(episodes.starts[chosen].tolist(), episodes.stops[chosen].tolist(), strict=True)
        return [{name: rows_of(array, a, b) for name, array in self._arrays.items()} for a, b in spans]

    def sample_sequences(
        self, n: int, length: int, rng: np.random.Generator | int | None = None
    ) -> dict[str, NDArray[Any]]:
        """``n`` random sequences of ``length`` rows, none of which leaves its episode; each as likely as any other.

        Returns:
            New arrays of shape ``(n, length, *row shape)``.

        Raises:
            ExperienceError: no episode is so long, or no column tells where they end.
        """
        self._check_open()
        first = self._drawn.sequences(n, length, self._generator(rng))
        rows = first[:, np.newaxis] + np.arange(length)
        taken = self._take(rows.ravel())
        return {name: array.reshape(n, length, *array.shape[1:]) for name, array in taken.items()}

    def stream(
        self, n: int, rng: np.random.Generator | int | None = None, *, length: int | None = None, ahead: int = 2
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Batches without end, drawn ahead by a thread while the last one is used.

        The thread draws from ``rng`` until the iterator is closed: give it one of its own for samples that repeat.

        Args:
            n: how many of a batch.
            rng: as for :meth:`sample`.
            length: None for rows, as :meth:`sample` gives them; else of sequences, as :meth:`sample_sequences` does.
            ahead: batches that wait.
        """
        generator = self._generator(rng)
        if length is None:
            return draw_ahead(lambda: self.sample(n, generator), ahead)
        return draw_ahead(lambda: self.sample_sequences(n, length, generator), ahead)

    @property
    def episodes(self) -> Episodes:
        """The episodes of the rows, in order; one whose first rows ``max_rows`` left out is not among them.

        Raises:
            ExperienceError: when no column tells where they end.
        """
        self._check_open()
        if self._episodes is None:
            found = []
            for (part, skip), start in zip(self._views, self._starts.tolist(), strict=False):
                if (episodes := read_episodes(part)) is None:
                    hint = "terminations or truncations, one flag a row, tell where episodes end"
                    raise ExperienceError(f"{part.path} has no episodes", hint=hint)
                found.append(episodes.between(skip, part.rows, start - skip))
            self._episodes = joined(found)
        return self._episodes

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the shards that the rows came from, in the order of the rows."""
        return tuple(name for part in self.parts for name in part.shard_names)

    @property
    def shard_offsets(self) -> NDArray[np.int64]:
        """Where each shard's rows start, and the end of the last: int64, one more than there are shards."""
        lengths = [np.diff(part.shard_offsets) for part in self.parts]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return np.maximum(offsets - self._dropped, 0)

    def stats(self, column: str) -> Stats:
        """The statistics of a column, combined from the files' own; only a part that is seen in part is read.

        Raises:
            SchemaError: no such column.
            ExperienceError: a part without statistics.
        """
        _ = self[column]
        shape = self._schema[column].shape
        known = []
        for part, skip in self._views:
            stats = part.columns[column].stats if not skip else stats_of(map_columns(part, skip)[column])
            if stats is None:
                raise ExperienceError(f"{self._name} has no statistics of '{column}'")
            known.append(stats)
        return combine(known, shape)

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

    @property
    def _drawn(self) -> Draws:
        if self._draws is None:
            self._draws = Draws(self.episodes)
        return self._draws

    def _take(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Rows by number, as new arrays. Of a window: part by part, then put into the order they were drawn in."""
        if not self._is_window:
            return {name: array.take(rows, axis=0) for name, array in self._arrays.items()}
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        ends = np.searchsorted(ordered, self._starts).tolist()
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        spans = [(k, a, b) for k, (a, b) in enumerate(pairwise(ends)) if a < b]
        local = [(k, slice(a, b), ordered[a:b] - self._starts[k]) for k, a, b in spans]
        result = {}
        for name, array in self._arrays.items():
            taken = np.empty((len(rows), *array.shape[1:]), array.dtype)
            for k, span, numbers in local:
                array.parts[k].take(numbers, axis=0, out=taken[span], mode="clip")  # NumPy's fast way; none is outside
            result[name] = taken.take(back, axis=0)
        return result
