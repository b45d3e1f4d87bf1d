"""Columns on their way to a file: rows go in, in any portions; digest, statistics and pieces to write come out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import ExperienceError
from rose_hpc.experience.digest import ChunkDigests, column_digest
from rose_hpc.experience.files import copy_range, start_writing, write_all
from rose_hpc.experience.stats import Stats, StatsStream, block_rows
from rose_hpc.refusals import named

#: what a writer keeps in memory; more goes to a file without a name
MEMORY_BYTES = 256 * 1024 * 1024
#: of a column, asked for at once at most
_ARENA_BYTES = 64 * 1024 * 1024
#: written at once
_WRITE_BYTES = 4 * 1024 * 1024

#: blocks, or where one lies in the store's file: (offset, bytes)
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
        with named(ExperienceError, f"cannot write rows to {self._folder}"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - close() ends it
            write_all(self._file.fileno(), as_bytes(block), self._end)
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
            with suppress(OSError):  # what was in it is elsewhere, or given up: closed it is all the same
                self._file.close()
            self._file = None


class ColumnBuffer:
    """One column: its rows are copied into blocks, and full blocks are stored.

    What stays in memory is digested and summed up at the end, when two threads can share the work and no Python of a
    simulator stands in their way; what goes to the disk is before.
    """

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], store: Store) -> None:
        self._dtype, self._shape, self._store = dtype, shape, store
        self._rows = block_rows(shape)
        self._bytes = self._rows * dtype.itemsize * math.prod(shape)
        self._asked = 0  # blocks there was memory for so far
        self._arena = self._new_arena()
        self._stored = self._fill = 0  # rows of the arena: in blocks that are full, in the one that is being filled
        self._waiting: list[NDArray[Any]] = []  # the latest of the pieces, which nobody has looked at yet
        self._tree = ChunkDigests()
        self._stats = StatsStream(shape)
        self.pieces: list[Piece] = []

    def write(self, rows: NDArray[Any]) -> None:
        """Copy rows of this column's dtype and shape."""
        done = 0
        while done < len(rows):
            part = rows[done : done + self._rows - self._fill]
            at = self._stored + self._fill
            self._arena[at : at + len(part)] = part
            self._fill += len(part)
            done += len(part)
            if self._fill == self._rows:
                self._end_block()

    def end(self) -> None:
        """Say that no more rows come."""
        if self._fill:
            self._end_block()
        self._end_arena()

    def write_to(self, fd: int, offset: int, *, sync: bool = False) -> None:
        """Write all rows into a file, after :meth:`end`; with ``sync`` the disk begins to take them at once."""
        fresh = len(self.pieces) - len(self._waiting)
        for number, piece in enumerate(self.pieces):
            for part in _parts(piece):
                size = self._store.write(part, fd, offset)
                if number >= fresh and not isinstance(part, tuple):
                    self._tree.update(as_bytes(part))
                if sync:
                    start_writing(fd, offset, size)
                offset += size

    def sum_up(self) -> Stats:
        """The statistics of all rows, after :meth:`end`; another thread may be writing them meanwhile."""
        for piece in self._waiting:
            for start in range(0, len(piece), self._rows):
                self._stats.add(piece[start : start + self._rows])
        return self._stats.stats

    def digest(self) -> str:
        """The digest of all rows, after :meth:`write_to`."""
        self._tree.finish()
        return column_digest(self._tree.digests.values())

    def _end_block(self) -> None:
        block = self._arena[self._stored : self._stored + self._fill]
        piece = self._store.keep(block)
        if isinstance(piece, tuple):
            self._end_arena()
            for part in (*self._waiting, block):
                self._tree.update(as_bytes(part))
            self._waiting.append(block)
            self.sum_up()
            self._waiting.clear()
            self.pieces.append(piece)
            self._arena, self._stored = self._arena[-self._rows :], 0  # the same memory again, and no more of it
        else:
            self._stored += self._fill
            if self._stored == len(self._arena):
                self._end_arena()
                self._arena = self._new_arena()
        self._fill = 0

    def _end_arena(self) -> None:
        if self._stored:
            self.pieces.append(self._arena[: self._stored])
            self._waiting.append(self._arena[: self._stored])
        self._stored = 0

    def _new_arena(self) -> NDArray[Any]:
        """Room for further blocks: memory that is asked for in growing portions comes in huge pages, and faster."""
        count = max(1, min(self._asked, _ARENA_BYTES // self._bytes))
        self._asked += count
        return np.empty((count * self._rows, *self._shape), self._dtype)


def _parts(piece: Piece) -> Iterator[Piece]:
    """A piece, in parts that are written at once."""
    if isinstance(piece, tuple):
        yield piece
        return
    step = max(1, _WRITE_BYTES // (piece.nbytes // len(piece)))
    for start in range(0, len(piece), step):
        yield piece[start : start + step]


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8).data
