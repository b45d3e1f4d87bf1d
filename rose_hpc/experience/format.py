"""The HDF5 side of shards and banks: creating, reading and refusing files.

Columns are contiguous datasets at the root, allocated before a byte is written: their bytes lie at a known offset, so
that any process can fill its own rows, and a reader needs no HDF5 call to see them. Only the features that are listed
here are accepted; links, external storage and virtual datasets would make HDF5 open other files (as in Keras'
CVE-2026-1669).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rose_hpc.errors import DamagedError, FormatError, SchemaError
from rose_hpc.experience.episodes import Episodes
from rose_hpc.experience.hdf5 import read_attribute, read_floats, reading, write_attribute, writing
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
#: no shard has more of either; counting is the first thing that is done with a file
_MAX_COLUMNS, _MAX_ATTRIBUTES = 4096, 1024
#: attributes of a dataset that hold its statistics
_STATS_ATTRIBUTES = dict(zip(STATS_FIELDS, ("count", "mean", "M2", "min", "max", "nans"), strict=True))
#: filters that HDF5 itself brings: others are plugins, that is code found by name
_FILTERS = frozenset(
    getattr(h5py.h5z, f"FILTER_{name}") for name in ("DEFLATE", "SHUFFLE", "FLETCHER32", "SZIP", "NBIT", "SCALEOFFSET")
) | {h5py.h5z.FILTER_LZF}


# -- writing -----------------------------------------------------------------------------------------------------------


def create(path: Path, columns: Mapping[str, Column], rows: int) -> dict[str, Column]:
    """Make a file with space for ``rows`` rows of ``columns``; returns them with their offsets.

    Raises:
        ExperienceError: when it cannot be written.
    """
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    offsets = {}
    with writing(path, "x") as file:
        for name, column in columns.items():
            space = h5py.h5s.create_simple((rows, *column.shape))
            kind = h5py.h5t.py_create(np.dtype(column.dtype), logical=True)
            dataset = h5py.h5d.create(file.id, None, kind, space, plist)
            file[name] = h5py.Dataset(dataset)
            offsets[name] = dataset.get_offset() or 0
    return renamed(columns, offset=offsets)


def write_info(path: Path, info: ShardInfo, episodes: Episodes | None = None) -> None:
    """Write everything that is said about the content into a file that has these columns.

    Args:
        path: the file.
        info: what is said.
        episodes: those that ``info.episodes`` is the digest of, unless the file has them already.
    """
    own: dict[str, Any] = {"format": FORMAT, "format_version": VERSION, "kind": info.kind, "rows": info.rows}
    if info.kind == "bank":
        own["shard_offsets"], own["shard_names"] = np.array(info.shard_offsets, np.int64), np.array(info.shard_names)
    if info.episodes:
        own["episodes_digest"] = info.episodes
    if episodes is not None:
        own |= episodes.attributes()
    with writing(path) as file:
        for name, column in info.columns.items():
            dataset = h5py.h5d.open(file.id, name.encode())
            if column.digest is not None:
                write_attribute(dataset, "digest", column.digest)
            for field in STATS_FIELDS if column.stats else ():
                write_attribute(dataset, _STATS_ATTRIBUTES[field], getattr(column.stats, field))
        root = h5py.h5g.open(file.id, b"/")
        for name, value in {**info.attributes, **own, "checksum": info.checksum()}.items():
            write_attribute(root, name, json.dumps(value) if isinstance(value, dict) else value)


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
        _check_format(file, path)
        found = survey(file, path)
        for name, reason in found.reasons.items():
            raise FormatError(f"{path}: column '{name}' {reason}", hint="seal it first: rose_hpc.experience.shard.seal")
        info = _info_of(file, path, found)
        if read_attribute(file.id, "checksum") != info.checksum():
            raise DamagedError(f"{path} is damaged: what it says of itself has been altered", paths=[str(path)])
        return info


@dataclass(frozen=True)
class Survey:
    """What is in a file.

    Attributes:
        columns: in canonical order, without digests and statistics.
        rows: the length of them all.
        reasons: why some of them must be written anew before they can be used.
        attributes: the plain ones that are not the format's own.
        sealed: whether somebody has said so; :func:`read_info` checks it.
    """

    columns: dict[str, Column]
    rows: int
    reasons: dict[str, str]
    attributes: dict[str, Any]
    sealed: bool


def survey(file: h5py.File, path: Path) -> Survey:
    """Look at everything in a file.

    Raises:
        FormatError: for anything that the format refuses.
        SchemaError: for a dtype or shape that no column has, or for columns of different lengths.
        DamagedError: for a column that reaches beyond the end of the file.
    """
    columns, lengths, reasons, size = {}, {}, {}, path.stat().st_size
    counts = (len(file.id), _MAX_COLUMNS, "objects"), (h5py.h5a.get_num_attrs(file.id), _MAX_ATTRIBUTES, "attributes")
    for count, limit, what in counts:
        if count > limit:
            raise FormatError(f"{path} has {count:,} {what}", hint=f"a shard has at most {limit:,}")
    for encoded in file.id:
        name = encoded.decode()
        check_name(name)
        if file.id.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
            raise FormatError(f"{path}: '{name}' is a link", hint="store the data itself")
        if h5py.h5o.get_info(file.id, encoded).type != h5py.h5o.TYPE_DATASET:
            raise FormatError(f"{path}: '{name}' is not a dataset", hint="columns are datasets at the root")
        dataset = h5py.h5d.open(file.id, encoded)
        reason = _storage_of(dataset, f"{path}: column '{name}'")
        column = columns[name] = _column_of(dataset, name, path)
        rows = lengths[name] = int(dataset.shape[0])
        if not reason and rows and column.offset + rows * column.row_bytes > size:
            raise DamagedError(f"{path} is damaged: column '{name}' reaches beyond its end", paths=[str(path)])
        if reason := reason or _dtype_reason(name, column):
            reasons[name] = reason
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise SchemaError(f"{path}: columns of different lengths: {text}", hint="give each one row per transition")
    sealed = h5py.h5a.exists(file.id, b"checksum")
    attributes = _attributes_of(file, heaps=not sealed)
    return Survey(in_order(columns), next(iter(lengths.values()), 0), reasons, attributes, sealed)


def check_dataset(dataset: h5py.h5d.DatasetID, name: str, path: Path) -> None:
    """Refuse one whose data are not numbers, lie in other files or need plugins.

    Raises:
        FormatError, SchemaError: naming it.
    """
    _storage_of(dataset, f"{path}: '{name}'")
    _column_of(dataset, name, path)


def _check_format(file: h5py.File, path: Path) -> None:
    """Refuse files that are not ours, or of a later version."""
    if read_attribute(file.id, "format") != FORMAT:
        hint = "if another program wrote it, seal it first: rose_hpc.experience.shard.seal"
        raise FormatError(f"{path} is not a shard or bank", hint=hint)
    version = read_attribute(file.id, "format_version")
    if version != VERSION:
        raise FormatError(f"{path} has format version {version}", hint=f"this rose_hpc reads version {VERSION}")


def _attributes_of(file: h5py.File, *, heaps: bool) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for number in range(h5py.h5a.get_num_attrs(file.id)):
        name = h5py.h5a.open(file.id, index=number).name.decode()
        value = None if name in RESERVED else read_attribute(file.id, name, heaps=heaps)
        if isinstance(value, str | int | float | bool):
            result[name] = value
    parameters = result.get("parameters")
    if isinstance(parameters, str) and parameters.startswith("{"):
        result["parameters"] = json.loads(parameters)
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
    is_foreign = kind.get_class() == h5py.h5t.ENUM and dtype != np.bool_
    if is_foreign or not kind.equal(h5py.h5t.py_create(dtype, logical=True)):
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


def _info_of(file: h5py.File, path: Path, found: Survey) -> ShardInfo:
    digests, stats = {}, {}
    for name, column in found.columns.items():
        dataset = h5py.h5d.open(file.id, name.encode())
        digests[name], stats[name] = read_attribute(dataset, "digest"), _stats_of(dataset, column)
    kind, rows, offsets, names = read_attribute(file.id, "kind"), found.rows, (0, found.rows), (path.stem,)
    if kind == "bank":
        offsets = tuple(np.asarray(read_attribute(file.id, "shard_offsets"), dtype=np.int64).tolist())
        names = tuple(np.asarray(read_attribute(file.id, "shard_names")).tolist())
    fit = len(offsets) == len(names) + 1 and (offsets[0], offsets[-1]) == (0, rows) and list(offsets) == sorted(offsets)
    if kind not in ("shard", "bank") or read_attribute(file.id, "rows") != rows or not fit:
        raise DamagedError(f"{path} is damaged: its attributes do not fit its columns", paths=[str(path)])
    return ShardInfo(
        path=path,
        kind=kind,
        rows=rows,
        bytes=path.stat().st_size,
        columns=renamed(found.columns, digest=digests, stats=stats),
        attributes=found.attributes,
        shard_offsets=offsets,
        shard_names=names,
        episodes=read_attribute(file.id, "episodes_digest"),
    )


def _stats_of(dataset: h5py.h5d.DatasetID, column: Column) -> Stats | None:
    arrays = [read_floats(dataset, name, stats_shape(column.shape)) for name in _STATS_ATTRIBUTES.values()]
    known = [array for array in arrays if array is not None]
    return Stats(*known) if len(known) == len(arrays) else None
