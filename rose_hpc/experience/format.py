"""The HDF5 side of shards and banks: creating, reading and refusing files.

Columns are contiguous datasets at the root, allocated before a byte is written: their bytes lie at a known offset, so
that any process can fill its own rows, and a reader needs no HDF5 call to see them. Only the features that are listed
here are accepted; links, external storage and virtual datasets would make HDF5 open other files (as in Keras'
CVE-2026-1669).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rose_hpc.errors import DamagedError, FormatError, SchemaError
from rose_hpc.experience.hdf5 import LIBVER, reading, writing
from rose_hpc.experience.schema import (
    FLAGS,
    RESERVED,
    REWARDS,
    Column,
    ShardInfo,
    check_dtype,
    check_name,
    dtype_name,
    in_order,
    renamed,
)
from rose_hpc.experience.stats import STATS_FIELDS, Stats, stats_shape

FORMAT = "rose_hpc.experience"
VERSION = 1
#: more shards than this need attributes that "earliest" cannot hold (64 KiB); 1.8's format, which 1.10 reads too, can
_MANY_SHARDS = 4000
#: attributes of a dataset that hold its statistics
_STATS_ATTRIBUTES = dict(zip(STATS_FIELDS, ("count", "mean", "M2", "min", "max", "nans"), strict=True))
#: filters that HDF5 itself brings: others are plugins, that is code found by name
_FILTERS = frozenset(
    getattr(h5py.h5z, f"FILTER_{name}") for name in ("DEFLATE", "SHUFFLE", "FLETCHER32", "SZIP", "NBIT", "SCALEOFFSET")
) | {h5py.h5z.FILTER_LZF}


# -- writing -----------------------------------------------------------------------------------------------------------


def create(path: Path, columns: Mapping[str, Column], rows: int, *, shards: int = 1) -> dict[str, Column]:
    """Make a file with space for ``rows`` rows of ``columns``; returns them with their offsets.

    Raises:
        ExperienceError: when it cannot be written.
    """
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    offsets = {}
    with writing(path, "x", low="v108" if shards > _MANY_SHARDS else LIBVER[0]) as file:
        for name, column in columns.items():
            space = h5py.h5s.create_simple((rows, *column.shape))
            kind = h5py.h5t.py_create(np.dtype(column.dtype), logical=True)
            dataset = h5py.h5d.create(file.id, None, kind, space, plist)
            file[name] = h5py.Dataset(dataset)
            offsets[name] = dataset.get_offset() or 0
    return renamed(columns, offset=offsets)


def write_info(path: Path, info: ShardInfo) -> None:
    """Write everything that is said about the content into a file that has these columns."""
    with writing(path, low="v108" if len(info.shard_names) > _MANY_SHARDS else LIBVER[0]) as file:
        for name, column in info.columns.items():
            attributes = file[name].attrs
            if column.digest is not None:
                attributes["digest"] = np.bytes_(column.digest)
            for field in STATS_FIELDS if column.stats else ():
                attributes[_STATS_ATTRIBUTES[field]] = getattr(column.stats, field)
        root = file.attrs
        root["format"], root["format_version"], root["kind"], root["rows"] = FORMAT, VERSION, info.kind, info.rows
        for name, value in info.attributes.items():
            root[name] = json.dumps(value) if isinstance(value, dict) else value
        if info.kind == "bank":
            root["shard_offsets"] = np.array(info.shard_offsets, dtype=np.int64)
            root.create("shard_names", list(info.shard_names), dtype=h5py.string_dtype())
        root["checksum"] = np.bytes_(info.checksum())


# -- reading -----------------------------------------------------------------------------------------------------------


def read_info(path: str | Path) -> ShardInfo:
    """What a shard or bank says of itself; no row is read.

    Raises:
        FormatError: not a shard or bank, not one of this version, or one with anything in it that the format refuses.
        SchemaError: columns that no shard may have.
        DamagedError: cut short, or altered.
    """
    path = Path(path)
    with reading(path) as file:
        check_format(file, path)
        columns, reasons = survey(file, path)
        for name, reason in reasons.items():
            raise FormatError(f"{path}: column '{name}' {reason}", hint="seal it first: rose_hpc.experience.shard.seal")
        info = _info_of(file, path, columns)
        if _text(file.attrs.get("checksum")) != info.checksum():
            raise DamagedError(f"{path} is damaged: what it says of itself has been altered", paths=[str(path)])
        return info


def check_format(file: h5py.File, path: Path) -> None:
    """Refuse files that are not ours, or of a later version."""
    if _text(file.attrs.get("format")) != FORMAT:
        hint = "if another program wrote it, seal it first: rose_hpc.experience.shard.seal"
        raise FormatError(f"{path} is not a shard or bank", hint=hint)
    version = file.attrs.get("format_version")
    if not isinstance(version, np.integer) or version != VERSION:
        raise FormatError(f"{path} has format version {version}", hint=f"this rose_hpc reads version {VERSION}")


def survey(file: h5py.File, path: Path) -> tuple[dict[str, Column], dict[str, str]]:
    """The columns of a file in canonical order, without digests, and why some of them must be rewritten before use.

    Raises:
        FormatError: for anything that the format refuses.
        SchemaError: for a dtype or shape that no column has.
        DamagedError: for a column that reaches beyond the end of the file.
    """
    columns, reasons, size = {}, {}, path.stat().st_size
    for encoded in file.id:
        name = encoded.decode(errors="replace")
        check_name(name)
        if file.id.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
            raise FormatError(f"{path}: '{name}' is a link", hint="store the data itself")
        if h5py.h5o.get_info(file.id, encoded).type != h5py.h5o.TYPE_DATASET:
            raise FormatError(
                f"{path}: '{name}' is not a dataset", hint="columns are datasets at the root, without groups"
            )
        dataset = h5py.h5d.open(file.id, encoded)
        reason = _storage_of(dataset, f"{path}: column '{name}'")
        column = _column_of(dataset, name, path)
        rows = dataset.shape[0]
        if not reason and rows and column.offset + rows * column.row_bytes > size:
            raise DamagedError(f"{path} is damaged: column '{name}' reaches beyond its end", paths=[str(path)])
        columns[name] = column
        if reason := reason or _dtype_reason(name, column):
            reasons[name] = reason
    return in_order(columns), reasons


def rows_of(file: h5py.File, columns: Mapping[str, Column], path: Path) -> int:
    """The one length of all columns; 0 without any.

    Raises:
        SchemaError: when they differ.
    """
    lengths = {name: int(file[name].shape[0]) for name in columns}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise SchemaError(
            f"{path}: columns of different lengths: {text}", hint="all columns have one row per transition"
        )
    return next(iter(lengths.values()), 0)


def attributes_of(file: h5py.File) -> dict[str, Any]:
    """The plain attributes of a file that are not the format's own."""
    result = {}
    for name in file.attrs:
        if name in RESERVED:
            continue
        value = file.attrs[name]
        value = value.item() if isinstance(value, np.generic) else value
        value = _text(value) if isinstance(value, bytes) else value
        if name == "parameters":
            value = json.loads(value)
        if isinstance(value, str | int | float | bool | dict):
            result[name] = value
    return result


def _storage_of(dataset: h5py.h5d.DatasetID, where: str) -> str | None:
    """None for storage that can be read in place, else what it is; raises FormatError for what is never read."""
    plist = dataset.get_create_plist()
    layout = plist.get_layout()
    if layout == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise FormatError(f"{where} keeps its data in other files", hint="store the data itself")
    filters = {plist.get_filter(n)[0] for n in range(plist.get_nfilters())}
    if not filters <= _FILTERS:
        raise FormatError(f"{where} needs filter plugins", hint="store it without, or with gzip")
    if layout != h5py.h5d.CONTIGUOUS:
        return "is not contiguous"
    if dataset.get_offset() is None and all(dataset.shape):
        return "was never written"
    return None


def _column_of(dataset: h5py.h5d.DatasetID, name: str, path: Path) -> Column:
    where, kind = f"{path}: column '{name}'", dataset.get_type()
    if kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM):
        raise SchemaError(f"{where} is neither numeric nor bool", hint="store it as numbers")
    dtype = kind.dtype
    check_dtype(name, dtype)
    if not kind.equal(h5py.h5t.py_create(dtype, logical=True)):
        raise SchemaError(f"{where} has a number type of its own", hint="use a standard integer or IEEE float type")
    if not dataset.shape or not all(dataset.shape[1:]):
        raise SchemaError(f"{where} has shape {dataset.shape}", hint="the first axis is rows, and a row has an element")
    return Column(dtype_name(dtype), tuple(map(int, dataset.shape[1:])), dataset.get_offset() or 0)


def _dtype_reason(name: str, column: Column) -> str | None:
    if name == REWARDS and np.dtype(column.dtype).kind != "f":
        return f"is {column.dtype}, not floating"
    if name in FLAGS and column.dtype != "bool":
        return f"is {column.dtype}, not bool"
    return None


def _info_of(file: h5py.File, path: Path, columns: dict[str, Column]) -> ShardInfo:
    rows, root = rows_of(file, columns, path), file.attrs
    digests = {name: _text(file[name].attrs.get("digest")) for name in columns}
    stats = {name: _stats_of(file[name].attrs, column) for name, column in columns.items()}
    is_bank = _text(root.get("kind")) == "bank"
    offsets = tuple(np.asarray(root["shard_offsets"], dtype=np.int64).tolist()) if is_bank else (0, rows)
    names = tuple(map(str, root["shard_names"])) if is_bank else (path.stem,)
    if len(offsets) != len(names) + 1 or offsets[-1] != rows or list(offsets) != sorted(offsets) or offsets[0]:
        raise FormatError(f"{path}: its shard_offsets do not fit its {rows} rows and {len(names)} shards")
    return ShardInfo(
        path=path,
        kind="bank" if is_bank else "shard",
        rows=rows,
        bytes=path.stat().st_size,
        columns=renamed(columns, digest=digests, stats=stats),
        attributes=attributes_of(file),
        shard_offsets=offsets,
        shard_names=names,
    )


def _stats_of(attributes: h5py.AttributeManager, column: Column) -> Stats | None:
    if "count" not in attributes:
        return None
    arrays = (np.asarray(attributes[name], dtype=np.float64) for name in _STATS_ATTRIBUTES.values())
    return Stats(*(array.reshape(stats_shape(column.shape)) for array in arrays))


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):  # np.bytes_ too
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None
