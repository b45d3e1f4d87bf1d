"""What a sealed file says of itself, found and checked without HDF5.

Two attributes of its root hold all of it: ``header``, JSON, and ``statistics``, float64. HDF5's own end is followed by
a footer: where the bytes of both lie, and a checksum of every byte of the file that is in no column. So a shard is
opened with a few reads, no byte of it changes unseen (those of the columns have digests), and HDF5 parses nothing that
was altered. docs/format.md says it in full.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from rose_hpc.errors import DamagedError, ExperienceError, FormatError, RoseHpcError, SchemaError
from rose_hpc.experience.digest import is_digest
from rose_hpc.experience.files import BUFFER, UnreadableError, new_buffer, read_into
from rose_hpc.experience.image import Extent, Piece, between
from rose_hpc.experience.schema import ITEM_BYTES, Column, ShardInfo, check_name, type_reason
from rose_hpc.experience.stats import STATS_FIELDS, Array, Stats, stats_shape
from rose_hpc.refusals import cause_of, next_step

FORMAT = "rose_hpc.experience"
VERSION = 2
SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAGIC = b"RoseHpc\n"
#: offset and bytes of the attribute "header", the same of "statistics", then the magic; the checksum is what follows
_FOOTER = struct.Struct("<4Q8s")
_CHECKSUM_BYTES = 16
_FOOTER_BYTES = _FOOTER.size + _CHECKSUM_BYTES
#: no file of ours has a larger header
_MAX_BYTES = 256 * 1024 * 1024
#: read of every file at once: where HDF5 describes the columns, and where the header is (or all of a small file)
START_BYTES, END_BYTES = 4 * 1024, 12 * 1024
_PLAIN = frozenset({str, int, float, bool})


# -- writing -----------------------------------------------------------------------------------------------------------


def encode(info: ShardInfo) -> tuple[bytes, Array]:
    """The values of the two attributes."""
    columns, known, at = {}, [np.empty(0)], 0
    for name, column in info.columns.items():
        facts = {"dtype": column.dtype, "shape": column.shape, "offset": column.offset, "digest": column.digest}
        columns[name] = {**facts, "statistics": None if column.stats is None else at}
        if column.stats is not None:
            known.append(column.stats.values.ravel())
            at += known[-1].size
    facts = {"format": FORMAT, "version": VERSION, "kind": info.kind, "rows": info.rows, "columns": columns}
    facts |= {"attributes": info.attributes}
    if info.kind == "bank":
        facts |= {"shard_names": info.shard_names, "shard_offsets": info.shard_offsets, "episodes": info.episodes}
    return json.dumps(facts, separators=(",", ":")).encode("ascii"), np.concatenate(known).astype("<f8", copy=False)


def footer_of(path: Path, pieces: Sequence[Piece], header: bytes, statistics: bytes) -> bytes:
    """What ends a file, of which ``pieces`` are all that is in no column.

    Raises:
        ExperienceError: HDF5 did not write the header in one piece.
    """
    checksum, places = xxhash.xxh3_128(), {header: -1, statistics: -1 if statistics else 0}
    for start, piece in pieces:
        checksum.update(piece)
        content = bytes(piece)
        for value, place in places.items():
            if place < 0 and (found := content.find(value)) >= 0:
                places[value] = start + found
    if min(places.values()) < 0:
        raise ExperienceError(f"cannot seal {path}: HDF5 did not write its header in one piece", hint="report this")
    footer = _FOOTER.pack(places[header], len(header), places[statistics], len(statistics), _MAGIC)
    checksum.update(footer)
    return footer + checksum.digest()


# -- reading -----------------------------------------------------------------------------------------------------------


def read_info(path: str | Path, fd: int | None = None) -> ShardInfo:
    """What a shard or bank says of itself; no row is read, and no HDF5 needed.

    Args:
        path: of the file.
        fd: of the same, if it is open already; it is closed.

    Raises:
        FormatError: not a shard or bank, not one of this version, or one with anything in it that the format refuses.
        SchemaError: columns that no shard may have.
        DamagedError: cut short, or altered.
    """
    path = path if isinstance(path, Path) else Path(path)
    if (info := read_sealed(path, fd)) is None:
        from rose_hpc.experience.format import refuse  # here: HDF5 is needed only to say what is wrong

        refuse(path)
    return info


def read_sealed(path: Path, fd: int | None = None) -> ShardInfo | None:
    """What a sealed file says of itself; None for one that is not HDF5, or has no footer. ``fd`` is closed.

    Raises:
        FormatError: it is not there, not readable, or of another version.
        DamagedError: altered.
    """
    fd = open_file(path) if fd is None else fd
    try:
        return _read(fd, path)
    except UnreadableError as error:
        raise DamagedError(f"{path} is damaged: {error}", paths=[str(path)], hint=error.hint) from error
    except SchemaError as error:
        raise DamagedError(f"{path} is damaged: {error.message}", paths=[str(path)]) from error
    except RoseHpcError:
        raise
    except OSError as error:
        raise FormatError(f"cannot read {path}: {cause_of(error)}", hint=next_step(error)) from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        text = f"{path} is damaged: its header does not parse"
        raise DamagedError(text, paths=[str(path)]) from error
    finally:
        os.close(fd)


def open_file(path: Path) -> int:
    """Open a file for reading. What is none, as a pipe that nobody writes to, is not waited for.

    Raises:
        FormatError: it is not there, not readable, or no file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist") from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {cause_of(error)}", hint=next_step(error)) from error
    try:
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError as error:
        os.close(fd)
        raise FormatError(f"cannot read {path}: {cause_of(error)}", hint=next_step(error)) from error
    if not is_file:
        os.close(fd)
        raise FormatError(f"{path} is not a file")
    return fd


class _Content:
    """Bytes of an open file; its start and end are read at once, and hold most of what is asked for."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.start = self._tail = b""
        self._tail_at = 0
        self.start = self.get(0, size if size <= END_BYTES else START_BYTES)
        if size > END_BYTES:
            self._tail_at = size - END_BYTES
            self._tail = self.get(self._tail_at, END_BYTES)

    def get(self, offset: int, size: int) -> bytes:
        """Some of them; UnreadableError when there are fewer."""
        if offset + size <= len(self.start):
            return self.start[offset : offset + size]
        if 0 <= (at := offset - self._tail_at) <= len(self._tail) - size:
            return self._tail[at : at + size]
        data = os.pread(self._fd, size, offset)
        if len(data) == size:
            return data
        view = new_buffer(size)  # a read may be cut short without being at the end
        read_into(self._fd, view, offset)
        return bytes(view)


def _read(fd: int, path: Path) -> ShardInfo | None:
    size = os.fstat(fd).st_size
    content, end = _Content(fd, size), size - _FOOTER_BYTES
    if end < len(SIGNATURE) or not content.start.startswith(SIGNATURE):
        return None
    footer = content.get(end, _FOOTER_BYTES)
    at, length, stats_at, stats_length, magic = _FOOTER.unpack_from(footer)
    if magic != _MAGIC:
        return None
    if max(at + length, stats_at + stats_length) > end or max(length, stats_length) > _MAX_BYTES:
        raise _altered(path)
    values = np.frombuffer(content.get(stats_at, stats_length), "<f8")
    info = _parse(json.loads(content.get(at, length)), values, path, size)
    taken = extents_of(info.columns, info.rows)
    if any(stop > end for _, stop in taken):
        raise _altered(path)
    checksum = xxhash.xxh3_128()
    for start, stop in between(taken, end):
        while start < stop:
            piece = content.get(start, min(BUFFER, stop - start))
            checksum.update(piece)
            start += len(piece)
    checksum.update(footer[: _FOOTER.size])
    if checksum.digest() != footer[_FOOTER.size :]:
        raise _altered(path)
    return info


def extents_of(columns: Mapping[str, Column], rows: int) -> list[Extent]:
    """Where the bytes of the columns start and end, in the order of the file."""
    return sorted((c.offset, c.offset + rows * c.row_bytes) for c in columns.values()) if rows else []


def _parse(facts: Mapping[str, Any], values: Array, path: Path, size: int) -> ShardInfo:
    """The header as data. A checksum says that it was not altered, not that we wrote it: nothing is believed.

    Raises:
        FormatError, SchemaError: for what the format does not have.
        ValueError, TypeError, KeyError, and their kin: likewise.
    """
    if facts["format"] != FORMAT or facts["version"] != VERSION:
        raise FormatError(f"{path} has format version {facts['version']}", hint=f"this rose_hpc reads {VERSION}")
    kind, rows, attributes = facts["kind"], _natural(facts["rows"]), facts["attributes"]
    columns = {name: _column(name, of, values) for name, of in facts["columns"].items()}
    for name, value in attributes.items():
        if type(value) not in _PLAIN and not (name == "parameters" and type(value) is dict):
            raise TypeError(name)
    if kind == "shard":
        return ShardInfo(path, kind, rows, size, columns, attributes, (0, rows), (path.stem,))
    offsets, names, episodes = tuple(facts["shard_offsets"]), tuple(facts["shard_names"]), facts["episodes"]
    if kind != "bank" or not _fit(offsets, names, rows) or not (episodes is None or is_digest(episodes)):
        raise ValueError(kind)
    return ShardInfo(path, kind, rows, size, columns, attributes, offsets, names, episodes)


def _fit(offsets: tuple[Any, ...], names: tuple[Any, ...], rows: int) -> bool:
    numbers = all(type(offset) is int for offset in offsets) and all(type(name) is str for name in names)
    ends = len(offsets) == len(names) + 1 and (offsets[0], offsets[-1]) == (0, rows)
    return numbers and ends and all(a <= b for a, b in pairwise(offsets))


def _column(name: str, facts: Mapping[str, Any], values: Array) -> Column:
    digest, at = facts["digest"], facts["statistics"]
    if not (digest is None or is_digest(digest)):
        raise ValueError(name)
    dtype, shape, of_stats, size = _kind(name, facts["dtype"], *facts["shape"])
    stats = None
    if at is not None:
        stats = Stats(values[_natural(at) : at + size].reshape(of_stats))
    return Column(dtype, shape, _natural(facts["offset"]), digest, stats)


@lru_cache(maxsize=4096, typed=True)
def _kind(name: str, dtype: str, *shape: int) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
    """Dtype and row shape of a column, and shape and size of its statistics: the same objects for all files."""
    check_name(name)
    if not all(type(n) is int and 0 < n < 2**63 for n in shape) or not ITEM_BYTES[dtype]:
        raise ValueError(name)
    if reason := type_reason(name, dtype):
        raise SchemaError(f"column '{name}' {reason}")
    of_stats = len(STATS_FIELDS), *stats_shape(shape)
    return dtype, shape, of_stats, math.prod(of_stats)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(value)
    return value


def _altered(path: Path) -> DamagedError:
    return DamagedError(f"{path} is damaged: what it says of itself was altered", paths=[str(path)])
