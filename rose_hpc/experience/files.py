"""Moving bytes between files, and publishing files: whole, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from rose_hpc.errors import DamagedError, ExperienceError, RoseHpcError
from rose_hpc.refusals import cause_of, named, next_step

#: moved at once: small enough to stay in a core's cache between reading, digesting and writing
BUFFER = 512 * 1024
#: statfs(2)'s numbers of file systems whose server copies, so that no byte crosses the network: NFS, CIFS, SMB2, Ceph
_SERVER_COPIES = {0x6969, 0xFF534D42, 0xFE534D42, 0x00C36400}
#: and of those that let files share blocks: XFS, Btrfs
_SHARES_BLOCKS = {0x58465342, 0x9123683E}
_BLOCK = 4096
#: views that are written at once: Linux takes 1024
_MOST_VIEWS = 512
#: answers of copy_file_range that mean "not between these files": other file systems, old kernels
_CANNOT_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


class UnreadableError(Exception):
    """Bytes that should be in a file cannot be had; the text continues "it ..."."""

    def __init__(self, text: str, cause: OSError | None = None) -> None:
        super().__init__(text if cause is None else f"{text} ({cause_of(cause)})")
        self.hint = next_step(cause) if cause is not None else "write it again"


@contextmanager
def publishing(path: Path, *, fsync: bool) -> Iterator[Path]:
    """A scratch path beside ``path``, renamed to it when the block ends well and removed otherwise.

    Args:
        path: what is published, or replaced.
        fsync: bring file and folder to the disk too.

    Raises:
        ExperienceError: when the system refuses (no access, disk full). The old file or the new one is there then, and
            no scratch file, unless the system refuses to remove it, too.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with named(ExperienceError, f"cannot write {path}"):
            yield scratch
            if fsync:
                fsync_path(scratch)
            scratch.rename(path)
            if fsync:
                fsync_path(path.parent)
    except BaseException as error:
        with suppress(OSError):  # gone already, or as unwilling as what failed
            scratch.unlink()
        if isinstance(error, UnreadableError) or (isinstance(error, DamagedError) and str(scratch) in error.paths):
            what = f"cannot write {path}: what is there of it so far cannot be read back"
            raise ExperienceError(f"{what} ({cause_of(error)})", hint=error.hint) from error
        if isinstance(error, RoseHpcError):  # people know the file, not its scratch
            error.message = error.message.replace(str(scratch), str(path))
        raise


def fsync_path(path: Path) -> None:
    """Bring a file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A file descriptor.

    Raises:
        UnreadableError: when a file that is only to be read cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if flags == os.O_RDONLY:
            raise UnreadableError("it cannot be opened", error) from error
        raise
    try:
        yield fd
    finally:
        os.close(fd)


def new_buffer(size: int) -> memoryview:
    """Room for so many bytes; not a ``bytearray``, which would be filled with zeros first."""
    return np.empty(size, np.uint8).data


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill ``view`` with the bytes at ``offset``.

    A plain read, not a mapping: a file cut short meanwhile is then an error, not the death of the process (SIGBUS).

    Raises:
        UnreadableError: when the file ends before, or its device fails.
    """
    while view:
        try:
            count = os.preadv(fd, [view], offset)
        except OSError as error:
            raise UnreadableError("it cannot be read", error) from error
        if not count:
            raise UnreadableError("it ends early")
        view, offset = view[count:], offset + count


def fetch(fd: int, offset: int, size: int) -> None:
    """Have the system begin to read what is needed soon: it would fetch a small file bit by bit. It may not care."""
    with suppress(OSError):
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """Write all of ``view`` at ``offset``."""
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def write_gathered(fd: int, views: Sequence[memoryview], offset: int) -> None:
    """Write all of several views, one after another from an offset on."""
    for start in range(0, len(views), _MOST_VIEWS):
        some = views[start : start + _MOST_VIEWS]
        done = os.pwritev(fd, some, offset)
        for view in some:
            if done < len(view):  # a write may be cut short
                write_all(fd, view[done:], offset + done)
            offset += len(view)
            done = max(0, done - len(view))


def reserve(fd: int, size: int) -> None:
    """Have the file system set aside the first ``size`` bytes of a file, where it can.

    Writing then takes half the time on a local disk, and a full one is found before anything is copied. Not
    ``os.posix_fallocate``: where the file system cannot, the C library writes to every block by itself.

    Raises:
        OSError: when there is no such space.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not size or not hasattr(libc, "fallocate64"):  # other systems than Linux with glibc
        return
    if libc.fallocate64(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise OSError(number, os.strerror(number))


def start_writing(fd: int, offset: int, size: int) -> None:
    """Have the system begin to bring bytes to the disk, and go on: a later fsync has less to wait for.

    That is no more than advice, whatever becomes of it: errors of the disk are the fsync's to report.
    """
    libc = ctypes.CDLL(None)
    if size and hasattr(libc, "sync_file_range"):  # glibc on Linux
        libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), 2)  # SYNC_FILE_RANGE_WRITE


def copy_range(source: int, source_offset: int, target: int, target_offset: int, size: int) -> None:
    """Copy bytes from file to file: by the file server or by sharing blocks, where that can be, else through memory.

    The kernel's own copy between two local files is page by page, and slower than reading and writing.

    Raises:
        UnreadableError: when the source ends before.
    """
    done, stop = _copied_elsewhere(_file_system(target), source_offset, target_offset, size)
    _copy_bytes(source, source_offset, target, target_offset, done)
    try:
        while done < stop:
            count = os.copy_file_range(source, target, stop - done, source_offset + done, target_offset + done)
            if not count:
                raise UnreadableError("it ends early")
            done += count
    except OSError as error:
        if error.errno not in _CANNOT_COPY:
            raise
    _copy_bytes(source, source_offset + done, target, target_offset + done, size - done)


def _copy_bytes(source: int, source_offset: int, target: int, target_offset: int, size: int) -> None:
    """Through memory."""
    buffer = new_buffer(min(BUFFER, size))
    for done in range(0, size, BUFFER):
        view = buffer[: size - done]
        read_into(source, view, source_offset + done)
        write_all(target, view, target_offset + done)


def copies_by_itself(fd: int) -> bool:
    """Whether a file's file system, or its server, can copy bytes that this machine does not see."""
    return _file_system(fd) in _SERVER_COPIES | _SHARES_BLOCKS


def _copied_elsewhere(kind: int, source_offset: int, target_offset: int, size: int) -> tuple[int, int]:
    """The stretch, from where to where in the range, of which copy_file_range moves no byte through this machine.

    Args:
        kind: the number of the file system.
        source_offset, target_offset, size: the range. Blocks can be shared where it lies alike in the blocks of both
            files, and then all of those that are wholly in it.
    """
    if kind in _SERVER_COPIES:
        return 0, size
    if kind not in _SHARES_BLOCKS or (source_offset - target_offset) % _BLOCK:
        return 0, 0
    start = min(size, -source_offset % _BLOCK)
    return start, max(start, size - (source_offset + size) % _BLOCK)


def _file_system(fd: int) -> int:
    """The number that statfs(2) gives a file's file system; 0 where it is not known."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = (ctypes.c_long * 32)()  # struct statfs has 120 bytes, f_type first
    return 0 if libc.fstatfs(fd, ctypes.byref(answer)) else int(answer[0]) & 0xFFFFFFFF
