"""HDF5 files of any content, written so that a full disk is an error and no more.

HDF5 writes much of a dataset when it is closed, and h5py closes it when Python forgets it: an error there goes unseen,
and HDF5 may crash later on. So HDF5 is given a file that never fails; what did fail is raised at the end.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from rose_hpc.errors import ExperienceError
from rose_hpc.experience.files import UnreadableError, opened, read_into, write_all
from rose_hpc.refusals import named


class Unfailing(io.RawIOBase):
    """A file as h5py wants one. After the first error nothing is written any more.

    Attributes:
        error: that error, or None.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._at = 0
        self._end = 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Where the next bytes are read or written."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        """The same."""
        return self._at

    def readinto(self, view: Any, /) -> int:
        """Fill all of ``view``: with zeros where nothing can be read."""
        view = memoryview(view).cast("B")
        try:
            read_into(self._fd, view, self._at)
        except UnreadableError as error:
            view[:] = bytes(len(view))
            if isinstance(error.__cause__, OSError):
                self._keep(error.__cause__)
        self._at += len(view)
        return len(view)

    def write(self, data: Any, /) -> int:
        """Write all of ``data``."""
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                write_all(self._fd, view, self._at)
            except OSError as error:
                self._keep(error)
        self._at += len(view)
        self._end = max(self._end, self._at)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Have the file end there."""
        size = self._at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                self._keep(error)
        self._end = size
        return size

    def flush(self) -> None:
        """Nothing waits here."""

    def _keep(self, error: OSError) -> None:
        self.error = self.error or error


@contextmanager
def writing_new(path: Path) -> Iterator[h5py.File]:
    """A new file, open for anything.

    Raises:
        ExperienceError: when it could not be written.
    """
    with named(ExperienceError, f"cannot write {path}"), opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        disk = Unfailing(fd)
        try:
            with h5py.File(disk, "w", libver=("v108", "v110")) as file:
                yield file
        finally:
            if disk.error is not None:
                raise disk.error
