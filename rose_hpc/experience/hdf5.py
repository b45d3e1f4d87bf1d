"""Opening HDF5 files: without locks, readable by HDF5 1.10, and with errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from rose_hpc.errors import DamagedError, ExperienceError, FormatError, RoseHpcError

#: HDF5 1.10 can read what is written within these bounds
LIBVER = ("earliest", "v110")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: start of a column: a cache line
_ALIGNMENT = 64


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading; whatever HDF5 cannot make sense of in it is an error of ours.

    Raises:
        FormatError: not HDF5, or not there.
        DamagedError: HDF5, but not readable as such.
    """
    _check_signature(path)
    try:
        # No lock: files are published whole, and many parallel file systems have none.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except RoseHpcError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise DamagedError(f"{path} is damaged: {_one_line(error)}", paths=[str(path)]) from error


@contextmanager
def writing(path: Path, mode: str = "r+", *, low: str = LIBVER[0]) -> Iterator[h5py.File]:
    """A file that is private to its writer, open for changes.

    Raises:
        ExperienceError: when it cannot be written (no access, disk full).
    """
    alignment = {"alignment_threshold": 1, "alignment_interval": _ALIGNMENT}
    try:
        with h5py.File(path, mode, libver=(low, LIBVER[1]), locking=False, **alignment) as file:
            yield file
    except RoseHpcError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ExperienceError(f"cannot write {path}: {_one_line(error)}") from error


def _check_signature(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(len(_SIGNATURE))
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist") from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise DamagedError(f"{path} is empty", paths=[str(path)], hint="write it again")
    if start != _SIGNATURE:
        raise FormatError(f"{path} is not an HDF5 file", hint="shards and banks are")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
