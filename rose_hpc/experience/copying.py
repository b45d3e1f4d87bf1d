"""Copying shards into a bank: pieces go from file to file in small blocks, digested on the way for both.

Nothing of a shard stays in memory but a block for each thread. The work is cut into shares that have nothing to do with
each other (:func:`rose_hpc.experience.plan.pieces_of_share`), so that threads, processes or nodes can take one each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby, pairwise
from operator import attrgetter
from typing import Protocol, TypeVar

import xxhash

from rose_hpc.experience.batches import Batch
from rose_hpc.experience.digest import CHUNK, ChunkDigests
from rose_hpc.experience.files import (
    BUFFER,
    UnreadableError,
    copies_by_itself,
    copy_range,
    new_buffer,
    opened,
    read_into,
    start_writing,
    write_all,
    write_gathered,
)
from rose_hpc.experience.plan import Piece, Source
from rose_hpc.experience.schema import Column
from rose_hpc.experience.tally import Tally

Item = TypeVar("Item")

#: the disk is given so many bytes at once
_SYNCED = 8 * 1024 * 1024


class Writer(Protocol):
    """Where the bytes of a bank's columns go.

    Attributes:
        block: how many bytes it likes to be given at once.
        copies: whether :meth:`copy` is worth a try.
    """

    block: int
    copies: bool

    def unit(self, column: str) -> int:
        """It can write only multiples of so many bytes, at multiples of them."""

    def write(self, column: str, view: memoryview, at: int) -> None:
        """Write bytes at position ``at`` of a column."""

    def gather(self, column: str, views: Sequence[memoryview], at: int) -> None:
        """Write several stretches, one after another."""

    def copy(self, source: int, offset: int, column: str, at: int, size: int) -> bool:
        """Copy bytes of a file that nobody needs to see; False where only :meth:`write` can.

        Raises:
            UnreadableError: when the source ends before.
        """


class SpanWriter:
    """Puts bytes where HDF5 would put them: contiguous columns lie at an offset that is known.

    Args:
        fd: of the bank.
        columns: with their offsets in it.
        sync: it will be brought to the disk: begin with that while the rest is copied.
    """

    block = BUFFER

    def __init__(self, fd: int, columns: Mapping[str, Column], *, sync: bool = False) -> None:
        self._fd = fd
        self._columns = columns
        self._sync = sync
        self.copies = copies_by_itself(fd)

    def unit(self, column: str) -> int:
        """Any byte."""
        return 1

    def write(self, column: str, view: memoryview, at: int) -> None:
        """See :class:`Writer`."""
        offset = self._columns[column].offset + at
        write_all(self._fd, view, offset)
        self._begin(offset, len(view))

    def gather(self, column: str, views: Sequence[memoryview], at: int) -> None:
        """See :class:`Writer`."""
        offset = self._columns[column].offset + at
        write_gathered(self._fd, views, offset)
        self._begin(offset, sum(map(len, views)))

    def copy(self, source: int, offset: int, column: str, at: int, size: int) -> bool:
        """By the file server or by sharing blocks, where that can be."""
        copy_range(source, offset, self._fd, self._columns[column].offset + at, size)
        return True

    def _begin(self, offset: int, size: int) -> None:
        """Have the disk begin with what has become whole."""
        if self._sync and (end := (offset + size) // _SYNCED * _SYNCED) > offset:
            start_writing(self._fd, max(0, end - _SYNCED), _SYNCED)


class Copier:
    """Copies shares; threads may share it.

    Args:
        sources: of the merge.
        writer: of the bank.
        tally: is told what was seen, and says whether anything is to be looked at.
    """

    def __init__(self, sources: Sequence[Source], writer: Writer, tally: Tally) -> None:
        self._sources = sources
        self._writer = writer
        self._tally = tally
        self._copies = writer.copies and not tally.verify

    def share(self, pieces: Iterable[Piece]) -> None:
        """Copy a share; what is wrong with a shard is told to the tally, and the others go on."""
        trees: dict[str, ChunkDigests] = {}
        buffer = new_buffer(self._writer.block)
        batch = Batch(self._writer, self._tally, trees, buffer)
        limit = 0 if self._copies else min(len(buffer), CHUNK - 1)  # of less than a chunk, all is in one share
        for number, group in groupby(pieces, key=attrgetter("shard")):
            of_shard = list(group)
            whole = [piece for piece in of_shard if piece.size <= limit and not piece.start]
            try:
                with opened(self._sources[number].path) as source:
                    batch.copy(source, self._sources[number].offsets, whole)
                    for piece in of_shard if len(whole) < len(of_shard) else ():
                        if piece not in whole:
                            batch.flush(piece.column)
                            tree = trees.setdefault(piece.column, ChunkDigests(piece.target))
                            self._piece(source, piece, tree, buffer)
            except UnreadableError as error:
                self._tally.damaged(number, str(error))
                batch.clear()
                trees.clear()  # they have a gap now, and there will be no bank
        batch.flush()
        for name, tree in trees.items():
            self._tally.add_bank(name, tree)

    def _piece(self, source: int, piece: Piece, bank_tree: ChunkDigests, buffer: memoryview) -> None:
        base = self._sources[piece.shard].offsets[piece.column]
        start, stop = piece.start, piece.start + piece.size
        verify, write = self._tally.verify, self._writer.write
        if self._copies and self._writer.copy(source, base + start, piece.column, piece.target, piece.size):
            return
        unit = self._writer.unit(piece.column)
        first = -(-start // unit) * unit  # units that start in the piece are written with it
        if len(buffer) < unit:
            buffer = new_buffer(unit)
        shard_tree = ChunkDigests(start)
        for at, end in _blocks(start, stop, unit, len(buffer) // unit * unit):
            view = buffer[: end - at]
            read_into(source, view, base + at)
            if verify:
                seen = view[: stop - at]
                shard_tree.update(seen)
                bank_tree.update(seen)
            if at >= first:
                write(piece.column, view, piece.target + at - start)
        if verify:
            self._tally.add_shard(piece, shard_tree)


def _blocks(start: int, stop: int, unit: int, step: int) -> Iterator[tuple[int, int]]:
    """Stretches to read, for bytes ``start`` to ``stop`` of a column, each of ``step`` bytes (a multiple of ``unit``).

    The first ends with the unit that ``start`` cuts, and the last goes on to the end of the unit that ``stop`` cuts.
    """
    if unit == 1 and stop - start <= step:
        return iter([(start, stop)])
    first, last = (-(-edge // unit) * unit for edge in (start, stop))
    edges = chain([start, min(first, stop)], range(first + step, last, step), [last] if last > first else [])
    return ((a, b) for a, b in pairwise(edges) if a < b)


def digest_chunk(fd: int, offset: int, size: int) -> bytes:
    """The leaf of a chunk of a column, of ``size`` bytes at ``offset`` of a file."""
    digest, buffer = xxhash.xxh3_128(), new_buffer(min(BUFFER, size))
    for done in range(0, size, len(buffer)):
        view = buffer[: size - done]
        read_into(fd, view, offset + done)
        digest.update(view)
    return digest.digest()


def complete(tally: Tally, fd: int, columns: Mapping[str, Column], workers: int) -> None:
    """Digest the chunks that were copied whole, but by nobody alone, from the bank itself."""

    def chunk(missing: tuple[str, int, int]) -> None:
        name, number, size = missing
        tally.add_leaf(name, number, digest_chunk(fd, columns[name].offset + number * CHUNK, size))

    in_threads(workers, chunk, tally.missing())


def in_threads(workers: int, function: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call the function with every item, from so many threads; after an error none begins another."""
    source, lock = iter(items), threading.Lock()
    failed = threading.Event()

    def work() -> None:
        while not failed.is_set():
            with lock:
                try:
                    item = next(source)
                except StopIteration:
                    return
            try:
                function(item)
            except BaseException:
                failed.set()
                raise

    if workers == 1:
        work()
        return
    with ThreadPoolExecutor(workers) as pool:
        for thread in [pool.submit(work) for _ in range(workers)]:
            thread.result()
