"""Columns on their way to a file: rows go in, in any portions; digest, statistics and pieces to write come out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import ExperienceError
from rose_hpc.experience.digest import ChunkDigests, column_digest
from rose_hpc.experience.files import copy_range, write_all
from rose_hpc.experience.stats import StatsStream, block_rows

#: what a writer keeps in memory; more goes to a file without a name
MEMORY_BYTES = 256 * 1024 * 1024

#: a block, or where it lies in the store's file: (offset, bytes)
Piece = NDArray[Any] | tuple[int, int]


class Store:
    """Blocks: in memory up to a limit, further ones in an unnamed file beside the one that will be written.

    Args:
        folder: for that file, so that a full disk is found early.
        limit: bytes kept in memory.
    """

    def __init__(self, folder: Path, limit: int = MEMORY_BYTES) -> None:
        self._folder = folder
        self._room = limit
        self._file: Any = None
        self._end = 0

    def keep(self, block: NDArray[Any]) -> Piece:
        """Take a block over; its owner does not change it any more.

        Raises:
            ExperienceError: when the disk is full.
        """
        if block.nbytes <= self._room:
            self._room -= block.nbytes
            return block
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - close() ends it
            write_all(self._file.fileno(), as_bytes(block), self._end)
        except OSError as error:
            raise ExperienceError(f"cannot write rows to {self._folder}: {error.strerror}") from error
        piece = (self._end, block.nbytes)
        self._end += block.nbytes
        return piece

    def write(self, piece: Piece, fd: int, offset: int) -> int:
        """Write a piece into a file; returns its bytes."""
        if isinstance(piece, tuple):
            copy_range(self._file.fileno(), piece[0], fd, offset, piece[1])
            return piece[1]
        write_all(fd, as_bytes(piece), offset)
        return piece.nbytes

    def close(self) -> None:
        """Let go of the file, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None


class ColumnBuffer:
    """One column: its rows are copied into blocks, and full blocks are digested, summed up and stored."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], store: Store) -> None:
        self._dtype, self._shape, self._store = dtype, shape, store
        self._block = self._new_block()
        self._fill = 0
        self._tree = ChunkDigests()
        self._stats = StatsStream(shape)
        self.pieces: list[Piece] = []

    def write(self, rows: NDArray[Any]) -> None:
        """Copy rows of this column's dtype and shape."""
        done = 0
        while done < len(rows):
            part = rows[done : done + len(self._block) - self._fill]
            self._block[self._fill : self._fill + len(part)] = part
            self._fill += len(part)
            done += len(part)
            if self._fill == len(self._block):
                self._end_block()
                self._block = self._new_block()

    def finish(self) -> tuple[str, StatsStream]:
        """The digest and statistics of all rows; afterwards ``pieces`` are complete."""
        if self._fill:
            self._end_block()
        self._tree.finish()
        return column_digest(self._tree.digests.values()), self._stats

    def _new_block(self) -> NDArray[Any]:
        return np.empty((block_rows(self._shape), *self._shape), self._dtype)

    def _end_block(self) -> None:
        block = self._block[: self._fill]
        self._tree.update(as_bytes(block))
        self._stats.add(block)
        self.pieces.append(self._store.keep(block))
        self._fill = 0


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8).data
