"""Reading the headers of many files: while one is read, the system fetches those after it.

Of small files that are to be copied it fetches all there is: so the disk has something to do while headers are read.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from rose_hpc.errors import FormatError
from rose_hpc.experience.files import fetch
from rose_hpc.experience.header import END_BYTES, START_BYTES, open_file, read_info
from rose_hpc.experience.schema import ShardInfo

#: so many files are open meanwhile
_AHEAD = 16
#: a file is small, and so many bytes of small ones are not forgotten again before they are copied
_SMALL = 4 * 1024 * 1024
_MOST = 1024 * 1024 * 1024


def read_each(paths: Iterable[Path]) -> Iterator[Callable[[], ShardInfo]]:
    """For each file in turn, what reads its header as :func:`read_info` does; all of them will be copied then.

    Meanwhile the system fetches the headers of the files after it: a disk answers many such questions at a time, and a
    file server is not waited for once for each.
    """
    waiting: deque[tuple[int | FormatError, Path]] = deque()
    fetched = 0
    try:
        for path in paths:
            fd, size = _fetched(path, _SMALL if fetched < _MOST else 0)
            fetched += size
            waiting.append((fd, path))
            if len(waiting) > _AHEAD:
                yield partial(_read_one, *waiting.popleft())
        while waiting:
            yield partial(_read_one, *waiting.popleft())
    finally:
        for fd, _ in waiting:
            if isinstance(fd, int):
                os.close(fd)


def _fetched(path: Path, most: int) -> tuple[int | FormatError, int]:
    """The file, open, or what keeps it from being that; and how much is fetched, if that is all of at most ``most``."""
    try:
        fd = open_file(path)
    except FormatError as error:
        return error, 0
    with suppress(OSError):  # whoever reads it will see
        if (size := os.fstat(fd).st_size) <= most:
            fetch(fd, 0, size)
            return fd, size
        fetch(fd, 0, START_BYTES)
        fetch(fd, max(0, size - END_BYTES), END_BYTES)
    return fd, 0


def _read_one(fd: int | FormatError, path: Path) -> ShardInfo:
    if isinstance(fd, FormatError):
        raise fd
    return read_info(path, fd)
