"""Small pieces of shards, copied together: what several shards have of a column is written at once.

Of a thousand shards, most of the time would go into calls for single pieces, and threads would wait for each other: for
their turn at Python, and for the bank, which the system lets one of them write at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Protocol

from rose_hpc.experience.digest import ChunkDigests, digest_of_small
from rose_hpc.experience.files import new_buffer, read_into
from rose_hpc.experience.plan import Piece
from rose_hpc.experience.tally import Tally

#: smaller pieces wait for others of their column; with the buffer for larger ones they stay in a core's cache
_SMALL = 128 * 1024
_WAITING = 1024 * 1024
#: between two columns of a file, rather read than left out
_GAP = 4096


class Gatherer(Protocol):
    """The part of a writer that is needed here."""

    def write(self, column: str, view: memoryview, at: int) -> None:
        """Write bytes at position ``at`` of a column."""

    def gather(self, column: str, views: Sequence[memoryview], at: int) -> None:
        """Write several stretches one after another from position ``at`` of a column on."""


class Batch:
    """Columns of shards on their way into a bank, whole ones of no more than a chunk; each follows upon the last.

    Args:
        writer: of the bank.
        tally: is told what was seen.
        trees: of the bank's columns; they get to see what is written.
        buffer: as large as any column that is given.
    """

    def __init__(
        self, writer: Gatherer, tally: Tally, trees: MutableMapping[str, ChunkDigests], buffer: memoryview
    ) -> None:
        self._writer = writer
        self._tally = tally
        self._trees = trees
        self._buffer = buffer
        self._room = new_buffer(_WAITING)
        self._used = 0
        self._waiting: dict[str, tuple[int, list[memoryview]]] = {}

    def copy(self, source: int, offsets: Mapping[str, int], pieces: Sequence[Piece]) -> None:
        """Take columns of a shard.

        Raises:
            UnreadableError: when the shard ends before.
            OSError: the bank cannot be written.
        """
        found: list[tuple[Piece, str]] = []
        for offset, size, places in _runs(offsets, pieces):
            view = self._buffer[:size]
            if size <= _SMALL:
                if self._used + size > len(self._room):
                    self.flush()
                view = self._room[self._used : self._used + size]
                self._used += size
            read_into(source, view, offset)
            for piece, start in places:
                part = view[start : start + piece.size]
                if self._tally.verify:
                    found.append((piece, digest_of_small(part)))
                if size <= _SMALL:
                    self._waiting.setdefault(piece.column, (piece.target, []))[1].append(part)
                else:
                    self.flush(piece.column)
                    self._write(piece.column, piece.target, [part])
        self._tally.add_columns(found)

    def flush(self, column: str | None = None) -> None:
        """Write what waits, if any of a column does.

        Raises:
            OSError: the bank cannot be written.
        """
        if column is None or column in self._waiting:
            for name, (target, parts) in self._waiting.items():
                self._write(name, target, parts)
            self.clear()

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting, self._used = {}, 0

    def _write(self, column: str, target: int, parts: Sequence[memoryview]) -> None:
        if len(parts) == 1:
            self._writer.write(column, parts[0], target)
        else:
            self._writer.gather(column, parts, target)
        if self._tally.verify:
            if (tree := self._trees.get(column)) is None:
                tree = self._trees[column] = ChunkDigests(target)
            for part in parts:
                tree.update(part)


def _runs(offsets: Mapping[str, int], pieces: Sequence[Piece]) -> Iterator[tuple[int, int, list[tuple[Piece, int]]]]:
    """What to read: offset and size, and the pieces in there with their places. Small columns lying close are one."""
    places: list[tuple[Piece, int]] = []
    first = reached = 0
    for piece in sorted(pieces, key=lambda piece: offsets[piece.column]):
        offset = offsets[piece.column]
        stop = offset + piece.size
        if places and (offset > reached + _GAP or stop - first > _SMALL):
            yield first, reached - first, places
            places = []
        if not places:
            first = reached = offset
        places.append((piece, offset - first))
        reached = max(reached, stop)
    if places:
        yield first, reached - first, places
