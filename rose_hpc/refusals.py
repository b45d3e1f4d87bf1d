"""What the operating system refuses, as errors of ours: the cause in its own words, and the next step."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from rose_hpc.errors import RoseHpcError

_NEXT = {
    errno.ENOSPC: "make room there, then go on: nothing is lost",
    errno.EDQUOT: "make room there or have the quota raised, then go on: nothing is lost",
    errno.EFBIG: "files there may not be so large: use another file system, or raise `ulimit -f`",
    errno.EROFS: "the file system is mounted read-only: once it can be written to again, go on",
    errno.EIO: "the disk or its server fails: have it looked at, then go on",
    errno.ESTALE: "the file server lost the file, as after a restart: go on once it answers",
    errno.EACCES: "is it yours to use?",
    errno.EPERM: "is it yours to use?",
    errno.ENOENT: "was it moved or removed?",
    errno.EMFILE: "too many files are open at once: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine: try again later",
    errno.ENOTEMPTY: "something else writes there: end that first",
    errno.ENAMETOOLONG: "choose a shorter path",
}
#: HDF5 says it so, somewhere in a long line
_IN_HDF5 = re.compile(r"errno = (\d+), error message")


@contextmanager
def named(kind: type[RoseHpcError], what: str) -> Iterator[None]:
    """Errors of the system in the block as ``kind``: ``<what>: No space left on device; make room there, ...``.

    Errors of ours pass as they are, those that are an OSError too.
    """
    try:
        yield
    except RoseHpcError:
        raise
    except OSError as error:
        raise kind(f"{what}: {cause_of(error)}", hint=next_step(error)) from error


def cause_of(error: BaseException) -> str:
    """One line: what the system said, else what the error does; HDF5 wraps the former in its own words."""
    if number := _number(error):
        return os.strerror(number)
    return " ".join(str(error).split()) or type(error).__name__


def words_of(error: BaseException) -> str:
    """One line: what kind of error it is, and what it says, if it does."""
    return ": ".join(part for part in (type(error).__name__, " ".join(str(error).split())) if part)


def next_step(error: BaseException, otherwise: str = "see to that, then try again") -> str:
    """What people can do about it; ``otherwise`` where the system did not say what it is."""
    return _NEXT.get(_number(error), otherwise)


def _number(error: BaseException) -> int:
    """The errno; 0 where there is none."""
    if found := _IN_HDF5.search(str(error)):
        return int(found[1])
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) else 0
