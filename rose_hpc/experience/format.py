"""The HDF5 side of shards and banks: creating, reading and refusing files.

Columns are contiguous datasets at the root, allocated before a byte is written: their bytes lie at a known offset, so
that any process can fill its own rows, and a reader needs no HDF5 call to see them. Only the features that are listed
here are accepted; links, external storage and virtual datasets would make HDF5 open other files (as in Keras'
CVE-2026-1669).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from rose_hpc.errors import DamagedError, ExperienceError, FormatError, SchemaError
from rose_hpc.experience.episodes import Episodes
from rose_hpc.experience.files import UnreadableError, opened
from rose_hpc.experience.hdf5 import read_attribute, reading, root_of, write_attribute, writing
from rose_hpc.experience.header import FORMAT, VERSION, encode, extents_of, footer_of
from rose_hpc.experience.header import read_info as read_info
from rose_hpc.experience.image import Image
from rose_hpc.experience.schema import (
    RESERVED,
    Column,
    ShardInfo,
    check_dtype,
    check_name,
    dtype_name,
    in_order,
    renamed,
    type_reason,
)
from rose_hpc.experience.stats import stats_size
from rose_hpc.refusals import named

#: no shard has more of either; counting is the first thing that is done with a file
_MAX_COLUMNS, _MAX_ATTRIBUTES = 4096, 1024
#: bytes that HDF5's oldest format has for an attribute, less what else the attribute consists of
_OLD_ATTRIBUTE_BYTES = 60_000
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
    with Image() as image:
        with named(ExperienceError, f"cannot write {path}"):
            image.allow(rows * sum(column.row_bytes for column in columns.values()))
        with writing(path, image, new=True, room=_room(columns)) as file:
            columns = _create_columns(file.id, columns, rows)
        with named(ExperienceError, f"cannot write {path}"), opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
            image.save(fd, image.pieces(extents_of(columns, rows)))
    return columns


def write_info(path: Path, info: ShardInfo, episodes: Episodes | None = None) -> None:
    """Seal a file that has these columns: write everything that is said about the content into it.

    Args:
        path: the file.
        info: what is said.
        episodes: those that ``info.episodes`` is the digest of, unless the file has them already.

    Raises:
        ExperienceError: when it cannot be read or written: then it may be half changed.
    """
    extents = extents_of(info.columns, info.rows)
    try:
        with named(ExperienceError, f"cannot write {path}"), opened(path, os.O_RDWR) as fd, Image() as image:
            image.load(fd, extents)
            with writing(path, image) as file:
                header, statistics = _write_attributes(root_of(file), info, episodes)
            pieces = image.pieces(extents)
            image.save(fd, pieces, footer_of(path, pieces, header, statistics))
    except UnreadableError as error:
        raise ExperienceError(f"cannot write {path}: {error}", hint=error.hint) from error


def _create_columns(file: h5py.h5f.FileID, columns: Mapping[str, Column], rows: int) -> dict[str, Column]:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    offsets = {}
    for name, column in columns.items():
        space = h5py.h5s.create_simple((rows, *column.shape))
        kind = h5py.h5t.py_create(np.dtype(column.dtype), logical=True)
        offsets[name] = h5py.h5d.create(file, name.encode(), kind, space, plist).get_offset() or 0
    return renamed(columns, offset=offsets)


def _room(columns: Mapping[str, Column]) -> int:
    """Bytes of metadata before the columns, so that they lie in one piece at the start of the file; a guess."""
    return 512 + 320 * len(columns)


def _write_attributes(root: h5py.h5g.GroupID, info: ShardInfo, episodes: Episodes | None) -> tuple[bytes, bytes]:
    """Everything that is said, twice: plain, for people, and as the header, for us; returns the latter's values."""
    plain: dict[str, Any] = {"format": FORMAT, "format_version": VERSION, "kind": info.kind, "rows": info.rows}
    if info.kind == "bank":
        plain["shard_offsets"], plain["shard_names"] = (
            np.array(info.shard_offsets, np.int64),
            np.array(info.shard_names),
        )
    if episodes is not None:
        plain |= episodes.attributes()
    header, statistics = encode(info)
    for name, value in {**info.attributes, **plain, "header": header, "statistics": statistics}.items():
        write_attribute(root, name, json.dumps(value) if isinstance(value, dict) else value)
    return header, statistics.tobytes()


# -- reading -----------------------------------------------------------------------------------------------------------


def examine(path: str | Path) -> ShardInfo:
    """What :func:`read_info` says, once everything that HDF5 finds in the file has been looked at too.

    The checksum of a sealed file tells that nothing was altered since. This is for files whose writer may be anybody:
    whoever opens them with HDF5 afterwards is not led elsewhere, and sees what we see.

    Raises:
        FormatError, SchemaError, DamagedError: as ``read_info``.
    """
    path = Path(path)
    info = read_info(path)
    with reading(path) as file:
        found = survey(file, path)
    for name, reason in found.reasons.items():
        raise FormatError(f"{path}: column '{name}' {reason}", hint="write it again")
    said = {name: replace(column, digest=None, stats=None) for name, column in info.columns.items()}
    plain = json.dumps({name: found.attributes.get(name) for name in info.attributes})
    if said != found.columns or info.rows != found.rows or plain != json.dumps(info.attributes):
        raise DamagedError(f"{path} is damaged: its header is not that of its content", paths=[str(path)])
    return info


def refuse(path: Path) -> NoReturn:
    """Say why a file without a footer is no shard or bank.

    Raises:
        FormatError: not HDF5, not ours, not of this version, or one with anything in it that the format refuses.
        SchemaError: columns that no shard may have.
        DamagedError: cut short, or altered.
    """
    with reading(path) as file:
        _check_format(file, path)
        for name, reason in survey(file, path).reasons.items():
            raise FormatError(f"{path}: column '{name}' {reason}", hint="seal it first: rose_hpc.experience.shard.seal")
    hint = "other programs may read a sealed file, not change it; write it anew"
    raise DamagedError(f"{path} is damaged: it was altered after it was sealed", paths=[str(path)], hint=hint)


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
    root = root_of(file)
    counts = (len(file.id), _MAX_COLUMNS, "objects"), (h5py.h5a.get_num_attrs(root), _MAX_ATTRIBUTES, "attributes")
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
        if reason := reason or type_reason(name, column.dtype):
            reasons[name] = reason
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise SchemaError(f"{path}: columns of different lengths: {text}", hint="give each one row per transition")
    sealed = read_attribute(root, "format") == FORMAT
    attributes = _attributes_of(root, heaps=not sealed)
    if columns and file.id.get_create_plist().get_version()[0] < 2 and not _fits_old(columns, attributes):
        reasons[next(reversed(columns))] = "has more statistics than HDF5's oldest format keeps"
    return Survey(in_order(columns), next(iter(lengths.values()), 0), reasons, attributes, sealed)


def _fits_old(columns: Mapping[str, Column], attributes: Mapping[str, Any]) -> bool:
    """Whether what sealing says of them fits into attributes of a file in HDF5's oldest format."""
    numbers = sum(stats_size(column.shape) for column in columns.values())
    header = 256 * len(columns) + len(json.dumps(attributes)) + len(json.dumps(list(columns)))
    return max(8 * numbers, header) < _OLD_ATTRIBUTE_BYTES


def check_dataset(dataset: h5py.h5d.DatasetID, name: str, path: Path) -> None:
    """Refuse one whose data are not numbers, lie in other files or need plugins.

    Raises:
        FormatError, SchemaError: naming it.
    """
    _storage_of(dataset, f"{path}: '{name}'")
    _column_of(dataset, name, path)


def _check_format(file: h5py.File, path: Path) -> None:
    """Refuse files that are not ours, or of a later version."""
    root = root_of(file)
    if read_attribute(root, "format") != FORMAT:
        hint = "if another program wrote it, seal it first: rose_hpc.experience.shard.seal"
        raise FormatError(f"{path} is not a shard or bank", hint=hint)
    version = read_attribute(root, "format_version")
    if version != VERSION:
        raise FormatError(f"{path} has format version {version}", hint=f"this rose_hpc reads version {VERSION}")


def _attributes_of(root: h5py.h5g.GroupID, *, heaps: bool) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for number in range(h5py.h5a.get_num_attrs(root)):
        name = h5py.h5a.open(root, index=number).name.decode()
        value = None if name in RESERVED else read_attribute(root, name, heaps=heaps)
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
