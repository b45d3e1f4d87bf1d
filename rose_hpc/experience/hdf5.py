"""Opening HDF5 files: without locks, readable by HDF5 1.10, and with errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rose_hpc.errors import DamagedError, ExperienceError, FormatError, RoseHpcError
from rose_hpc.experience.header import SIGNATURE, open_file
from rose_hpc.experience.image import Image
from rose_hpc.refusals import cause_of, next_step

#: HDF5 1.8's file format: every later version reads it, its metadata have checksums (the oldest format's have none, and
#: flipped bits make HDF5 crash, hang or see other data), and attributes may be larger than 64 KiB, as shards' names may
_LIBVER = (h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V110)
#: larger attributes are nobody's we know
_MAX_ATTRIBUTE_BYTES = 256 * 1024 * 1024
#: start of a column: a cache line
_ALIGNMENT = 64
#: HDF5 allots its metadata in blocks of at least so many bytes
_META_BLOCK = 2048
#: attributes of a new file's root that are kept in its object header, which is found and read faster than a heap
_COMPACT_ATTRIBUTES = 64


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
        hint = next_step(error, "write it again")
        raise DamagedError(f"{path} is damaged: {cause_of(error)}", paths=[str(path)], hint=hint) from error


@contextmanager
def writing(path: Path, image: Image, *, new: bool = False, room: int = 0) -> Iterator[h5py.File]:
    """The image of a file, open for changes.

    Args:
        path: whose image it is.
        image: in memory.
        new: make a file; else it has been loaded.
        room: bytes of metadata that a new file keeps in one piece at its start.

    Raises:
        ExperienceError: when HDF5 cannot make sense of it, or memory is short.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_stdio()
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(*_LIBVER)
    access.set_file_locking(False, True)
    access.set_alignment(1, _ALIGNMENT)
    if hasattr(access, "set_meta_block_size"):  # not in h5py 3.7, which is Debian 12's, with MPI
        access.set_meta_block_size(max(room, _META_BLOCK))
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_attr_phase_change(_COMPACT_ATTRIBUTES, 0)
    try:
        if new:
            file = h5py.h5f.create(image.path.encode(), h5py.h5f.ACC_TRUNC, creation, access)
        else:
            file = h5py.h5f.open(image.path.encode(), h5py.h5f.ACC_RDWR, access)
        with h5py.File(file) as opened:  # whose end closes all that was opened through it
            yield opened
    except RoseHpcError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ExperienceError(f"cannot write {path}: {cause_of(error)}", hint=next_step(error)) from error


def root_of(file: h5py.File) -> h5py.h5g.GroupID:
    """The root, which has a file's attributes: HDF5 1.10 does not take the file itself for it."""
    return h5py.h5g.open(file.id, b"/")


def read_attribute(item: h5py.h5g.GroupID | h5py.h5d.DatasetID, name: str, *, heaps: bool = False) -> Any:
    """A plain attribute: text, a number, a bool, or an array of them; None for one that is missing, or anything else.

    Args:
        item: the low-level identifier of a root or dataset.
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


def write_attribute(item: h5py.h5g.GroupID | h5py.h5d.DatasetID, name: str, value: Any) -> None:
    """Write a plain attribute, replacing one of that name. Text is of fixed length: it is read without heaps."""
    data = np.asarray(value.encode() if isinstance(value, str) else value)
    data = np.char.encode(data, "utf-8") if data.dtype.kind == "U" else np.ascontiguousarray(data).reshape(data.shape)
    space = h5py.h5s.create_simple(data.shape) if data.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
    if h5py.h5a.exists(item, name.encode()):
        h5py.h5a.delete(item, name.encode())
    kind = _text_type(data.dtype.itemsize) if data.dtype.kind == "S" else h5py.h5t.py_create(data.dtype, logical=True)
    h5py.h5a.create(item, name.encode(), kind, space).write(data, mtype=kind)


def _text_type(size: int) -> h5py.h5t.TypeStringID:
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(max(1, size))
    kind.set_cset(h5py.h5t.CSET_UTF8)
    kind.set_strpad(h5py.h5t.STR_NULLPAD)
    return kind


def _check_signature(path: Path) -> None:
    try:
        with open(open_file(path), "rb") as file:
            start = file.read(len(SIGNATURE))
    except OSError as error:
        raise FormatError(f"cannot read {path}: {cause_of(error)}", hint=next_step(error)) from error
    if not start:
        raise DamagedError(f"{path} is empty", paths=[str(path)], hint="write it again")
    if start != SIGNATURE:
        raise FormatError(f"{path} is not an HDF5 file", hint="shards and banks are")
