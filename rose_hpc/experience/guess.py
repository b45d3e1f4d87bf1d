"""Many shards, merged without reading all their headers first: how many rows each has is guessed from its size.

Where a column of the bank lies follows from the rows of all shards. Rollouts of one length, or of rows that are larger
than what their headers differ by, tell them by their size; then a shard's header is read when its turn comes to be
copied, by the thread that copies it. A guess that turns out wrong, or anything wrong with a shard, ends that: the merge
begins anew, with all headers read, and it is that merge which says what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import overload

from rose_hpc.errors import DamagedError, FormatError, SchemaError
from rose_hpc.experience.header import read_info
from rose_hpc.experience.plan import Layouts, MergePlan, Source, plan_rows, source_of
from rose_hpc.experience.schema import ShardInfo, difference

#: shards from which on it is worth it
_MANY = 64


class WrongGuessError(Exception):
    """A shard is not what was guessed."""


def plan_by_size(paths: Sequence[str | Path | ShardInfo]) -> tuple[MergePlan, Guessed] | None:
    """The plan of merging these shards, and what reads their headers; None where there is nothing to guess."""
    if len(paths) < _MANY or any(isinstance(path, ShardInfo) for path in paths):
        return None
    files = [Path(path) for path in paths if not isinstance(path, ShardInfo)]
    with suppress(DamagedError, FormatError, SchemaError, WrongGuessError, OSError):
        sizes = [os.stat(path).st_size for path in files]  # noqa: PTH116 - of thousands
        model = read_info(files[0])
        row = sum(column.row_bytes for column in model.columns.values())
        if model.rows and row:
            rows = [model.rows + round((size - sizes[0]) / row) for size in sizes]
            if min(rows) >= 0:
                guessed = Guessed(files, rows, model)
                guessed[len(files) // 2], guessed[len(files) - 1]
                return replace(plan_rows(rows, model), sources=guessed), guessed
    return None


class Guessed(Sequence[Source]):
    """Sources whose headers are read when they are asked for; threads may share them.

    Args:
        paths: of the shards.
        rows: that each should have.
        model: one that has columns as all should have.
    """

    def __init__(self, paths: Sequence[Path], rows: Sequence[int], model: ShardInfo) -> None:
        self._paths, self._rows, self._model = paths, rows, model
        self._known: dict[int, tuple[ShardInfo, Source]] = {}
        self._layouts: Layouts = {}
        self._is_wrong = False

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Source: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...

    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        """One of them.

        Raises:
            WrongGuessError: it, or another, is not as it should be.
            FormatError, DamagedError: as :func:`~rose_hpc.experience.header.read_info` does.
        """
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if (known := self._known.get(index)) is None:
            if self._is_wrong:
                raise WrongGuessError
            try:
                known = self._known[index] = self._read(index)
            except BaseException:
                self._is_wrong = True  # no thread begins another
                raise
        return known[1]

    def infos(self) -> list[ShardInfo]:
        """What all of them say of themselves; raises as asking for each does."""
        for number in range(len(self)):
            self[number]
        return [self._known[number][0] for number in range(len(self))]

    def _read(self, number: int) -> tuple[ShardInfo, Source]:
        info = read_info(self._paths[number])
        if info.rows != self._rows[number] or (info.rows and difference(self._model.columns, info.columns)):
            raise WrongGuessError
        return info, source_of(info, self._model.columns, self._layouts)
