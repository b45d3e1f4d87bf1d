"""Opening HDF5 files: without locks, readable by HDF5 1.10, and with errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import DamagedError, ExperienceError, FormatError, RoseHpcError

#: HDF5 1.8's file format: every later version reads it, its metadata have checksums (the oldest format's have none, and
#: flipped bits make HDF5 crash, hang or see other data), and attributes may be larger than 64 KiB, as shards' names may
_LIBVER = ("v108", "v110")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: larger attributes are nobody's we know
_MAX_ATTRIBUTE_BYTES = 256 * 1024 * 1024
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
def writing(path: Path, mode: str = "r+") -> Iterator[h5py.File]:
    """A file that is private to its writer, open for changes.

    Raises:
        ExperienceError: when it cannot be written (no access, disk full).
    """
    alignment = {"alignment_threshold": 1, "alignment_interval": _ALIGNMENT}
    try:
        with h5py.File(path, mode, libver=_LIBVER, locking=False, **alignment) as file:
            yield file
    except RoseHpcError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ExperienceError(f"cannot write {path}: {_one_line(error)}") from error


def read_attribute(item: h5py.h5g.GroupID | h5py.h5d.DatasetID, name: str, *, heaps: bool = False) -> Any:
    """A plain attribute: text, a number, a bool, or an array of them; None for one that is missing, or anything else.

    Args:
        item: the low-level identifier of a root or dataset: a merge reads some fifty attributes of each shard.
        name: of the attribute.
        heaps: read text of variable length too, as plain h5py and most programs write it. In damaged files HDF5 may
            crash or hang on that, so it is for files that nobody has sealed yet.
    """
    if not h5py.h5a.exists(item, name.encode()):
        return None
    attribute = h5py.h5a.open(item, name.encode())
    kind = attribute.get_type()
    is_text = kind.get_class() == h5py.h5t.STRING
    if not is_text and kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM):
        return None
    if is_text and kind.is_variable_str():
        return h5py.AttributeManager(h5py.Group(item))[name] if heaps else None
    if attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return None
    if 0 in attribute.shape:  # whose storage HDF5 does not like to be asked for
        return np.empty(attribute.shape, attribute.dtype)
    if attribute.get_storage_size() > _MAX_ATTRIBUTE_BYTES:
        return None
    value = np.empty(attribute.shape, attribute.dtype)
    attribute.read(value)
    value = np.char.decode(value, "utf-8") if is_text else value
    return value if value.ndim else value.item()


def read_floats(item: h5py.h5d.DatasetID, name: str, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """An attribute of floating numbers of a known shape, five times as fast; None when it is missing, or another."""
    if not h5py.h5a.exists(item, name.encode()):
        return None
    attribute = h5py.h5a.open(item, name.encode())
    if attribute.shape != shape or attribute.get_type().get_class() != h5py.h5t.FLOAT:
        return None
    value = np.empty(shape)
    attribute.read(value, mtype=h5py.h5t.NATIVE_DOUBLE)
    return value


def write_attribute(item: h5py.h5g.GroupID | h5py.h5d.DatasetID, name: str, value: Any) -> None:
    """Write a plain attribute, replacing one of that name. Text is of fixed length: it is read without heaps."""
    data = np.asarray(value)
    data = np.char.encode(data, "utf-8") if data.dtype.kind == "U" else np.ascontiguousarray(data).reshape(data.shape)
    is_text = data.dtype.kind == "S"
    dtype = h5py.string_dtype("utf-8", max(1, data.dtype.itemsize)) if is_text else data.dtype
    space = h5py.h5s.create_simple(data.shape) if data.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
    if h5py.h5a.exists(item, name.encode()):
        h5py.h5a.delete(item, name.encode())
    kind = h5py.h5t.py_create(dtype, logical=True)
    h5py.h5a.create(item, name.encode(), kind, space).write(data, mtype=kind)


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
