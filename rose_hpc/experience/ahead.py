"""Reading the headers of many files: while one is read, the system fetches those after it."""

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


def read_each(paths: Iterable[Path]) -> Iterator[Callable[[], ShardInfo]]:
    """For each file in turn, what reads its header as :func:`read_info` does.

    Meanwhile the system fetches the headers of the files after it: a disk answers many such questions at a time, and a
    file server is not waited for once for each.
    """
    waiting: deque[tuple[int | FormatError, Path]] = deque()
    try:
        for path in paths:
            waiting.append((_fetched(path), path))
            if len(waiting) > _AHEAD:
                yield partial(_read_one, *waiting.popleft())
        while waiting:
            yield partial(_read_one, *waiting.popleft())
    finally:
        for fd, _ in waiting:
            if isinstance(fd, int):
                os.close(fd)


def _fetched(path: Path) -> int | FormatError:
    """The file, open, and what keeps it from being that."""
    try:
        fd = open_file(path)
    except FormatError as error:
        return error
    fetch(fd, 0, START_BYTES)
    with suppress(OSError):  # whoever reads it will see
        fetch(fd, max(0, os.fstat(fd).st_size - END_BYTES), END_BYTES)
    return fd


def _read_one(fd: int | FormatError, path: Path) -> ShardInfo:
    if isinstance(fd, FormatError):
        raise fd
    return read_info(path, fd)
