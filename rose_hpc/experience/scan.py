"""Digests and statistics of columns that are in a file already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from rose_hpc.errors import DamagedError
from rose_hpc.experience.digest import ChunkDigests, column_digest
from rose_hpc.experience.files import UnreadableError, opened, read_into
from rose_hpc.experience.schema import Column
from rose_hpc.experience.stats import StatsStream, block_rows


def scan(path: Path, columns: Mapping[str, Column], rows: int) -> dict[str, Column]:
    """The columns with their digests and statistics.

    Raises:
        DamagedError: when the file ends early.
    """
    try:
        with opened(path) as fd:
            return {name: _scan_column(fd, column, rows) for name, column in columns.items()}
    except UnreadableError as error:
        raise DamagedError(f"{path} is damaged: {error}", paths=[str(path)], hint=error.hint) from error


def _scan_column(fd: int, column: Column, rows: int) -> Column:
    tree, stream, step = ChunkDigests(), StatsStream(column.shape), block_rows(column.shape)
    buffer = np.empty(min(step, rows) * column.row_bytes, np.uint8)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        data = buffer[: count * column.row_bytes]
        read_into(fd, data.data, column.offset + start * column.row_bytes)
        tree.update(data.data)
        stream.add(data.view(column.dtype).reshape(count, *column.shape))
    tree.finish()
    return replace(column, digest=column_digest(tree.digests.values()), stats=stream.stats)
