"""HDF5's part of a file, made in memory and then brought to the disk.

HDF5 cannot stand a disk that is full: it keeps the file that it could not write open, swallows errors, or crashes when
the process ends. So it works on a file in memory, in which the columns are holes, and the rest of it is written by us.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

from rose_hpc.experience.files import new_buffer, read_into, write_all

#: start and end of a column's bytes
Extent = tuple[int, int]
#: bytes that are in no column, and where they lie
Piece = tuple[int, memoryview]


class Image:
    """A file in memory; it is gone when the block ends.

    Attributes:
        path: by which this process opens it.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("rose_hpc", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self._fd}"

    @property
    def size(self) -> int:
        """Bytes, those of the columns included."""
        return os.fstat(self._fd).st_size

    def allow(self, size: int) -> None:
        """See whether a file may be so large: HDF5 would fail without saying why.

        Raises:
            OSError: it may not.
        """
        os.ftruncate(self._fd, size)
        os.ftruncate(self._fd, 0)

    def load(self, fd: int, extents: Iterable[Extent]) -> None:
        """Take over a file, but for its columns.

        Raises:
            UnreadableError: when it cannot be read.
        """
        size = os.fstat(fd).st_size
        os.ftruncate(self._fd, size)
        for start, piece in _pieces(fd, extents, size):
            write_all(self._fd, piece, start)

    def pieces(self, extents: Iterable[Extent]) -> list[Piece]:
        """All that is in no column, in order."""
        return list(_pieces(self._fd, extents, self.size))

    def save(self, fd: int, pieces: Sequence[Piece], footer: bytes = b"") -> None:
        """Write pieces of this image into the file that it is of, and what follows HDF5's end.

        Raises:
            OSError: when the system refuses.
        """
        size = self.size
        for start, piece in (*pieces, (size, memoryview(footer))):
            write_all(fd, piece, start)
        os.ftruncate(fd, size + len(footer))  # a new file may end with a column, an old one may have been longer

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def between(extents: Iterable[Extent], end: int) -> Iterator[Extent]:
    """The parts of a file of ``end`` bytes that are in none of its columns, in order."""
    reached = 0
    for start, stop in (*extents, (end, end)):
        if start > reached:
            yield reached, start
        reached = max(reached, stop)


def _pieces(fd: int, extents: Iterable[Extent], end: int) -> Iterator[Piece]:
    for start, stop in between(extents, end):
        piece = new_buffer(stop - start)
        read_into(fd, piece, start)
        yield start, piece
