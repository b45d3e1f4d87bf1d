"""Writing shards: row by row or by arrays, published whole; and sealing those that other programs wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import ExperienceError, FormatError, SchemaError
from rose_hpc.experience.buffers import ColumnBuffer, Store
from rose_hpc.experience.cells import Cell
from rose_hpc.experience.copying import in_threads
from rose_hpc.experience.files import fsync_path, opened, publishing
from rose_hpc.experience.format import Survey, create, refuse, survey, write_info
from rose_hpc.experience.hdf5 import reading
from rose_hpc.experience.header import read_info, read_sealed
from rose_hpc.experience.scan import scan
from rose_hpc.experience.schema import SINGULAR, ShardInfo, in_order, plain_attributes, renamed
from rose_hpc.experience.stats import Stats
from rose_hpc.refusals import named

#: single rows are gathered in blocks of about this size before they go to their columns
_STAGE_BYTES = 256 * 1024
_STAGE_ROWS = 4096
#: a file holds at most so many times its own size (gzip reaches 1,032), beyond so many bytes that do not matter
_MOST_COMPRESSED, _PLENTY_BYTES = 1100, 64 * 1024 * 1024
#: rows of about this size are read at once when a file is rewritten
_COPY_BYTES = 8 * 1024 * 1024
#: a smaller shard is closed before a second thread has begun
_WORTH_A_THREAD = 2 * 1024 * 1024


class ShardWriter:
    """Writes one shard, which appears at ``path`` only when the ``with`` block ends well.

    Columns may have any names; Gymnasium's singular ones (``observation=``, ``reward=``, ``terminated=``, ...) fill the
    plural columns. dtype and shape of each column are fixed by its first row: bool, integers or floats, of any trailing
    shape. Rewards become floating (integers: float64), ``terminated`` and ``truncated`` bool; Python's int is int64 and
    its float float64.

    Args:
        path: the shard; an older file of that name is replaced.
        attributes: plain values known of it: ``run``, ``iteration``, ``environment``, ``seed``, and ``parameters``, a
            mapping.
        fsync: have it on the disk, not only in the system's memory, before it appears.

    Raises:
        ExperienceError: when the folder is not there or cannot be written to.
        SchemaError: for attributes that are not plain.
    """

    def __init__(self, path: str | Path, *, attributes: Mapping[str, Any] | None = None, fsync: bool = True) -> None:
        self.path = Path(path)
        self._attributes = plain_attributes(attributes)
        self._fsync = fsync
        folder = self.path.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            reason = "is not writable" if folder.is_dir() else "is not a folder"
            raise ExperienceError(f"cannot write {self.path}: {folder} {reason}")
        self._store = Store(folder)
        self._cells: dict[str, Cell] = {}
        self._buffers: dict[str, ColumnBuffer] = {}
        self._keys: tuple[str, ...] | None = None  # the keywords of the latest append, and the cells they fill
        self._row: tuple[tuple[NDArray[Any], frozenset[type], np.dtype[Any], tuple[int, ...], Cell], ...] = ()
        self._staged = self._flushed = self._stage_rows = 0
        self._open = True

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self._flushed + self._staged

    # append() runs once per step of a simulator: what it needs is prepared, and the usual values take no call.
    def append(self, **row: Any) -> None:
        """Add one transition, of all columns. The values are copied: simulators reuse their buffers.

        Raises:
            SchemaError: columns missing or new, or a value of another dtype or shape; the row is then not added.
        """
        if tuple(row) != self._keys or not self._open:
            self._prepare(row)
        at = self._staged
        try:
            for (stage, accepts, dtype, shape, cell), value in zip(self._row, row.values()):  # noqa: B905 - same keys
                kind = type(value)
                if kind in accepts or (kind is np.ndarray and value.dtype is dtype and value.shape == shape):
                    stage[at] = value
                else:
                    stage[at] = cell.convert(value)
        except OverflowError as error:
            raise SchemaError(f"column '{cell.name}' is {dtype}: {error}") from error
        self._staged = at + 1
        if self._staged == self._stage_rows:
            self._flush()

    def extend(self, **columns: Any) -> None:
        """Add transitions by arrays, one of each column; the first axis is rows. The values are copied.

        Raises:
            SchemaError: columns missing or new, of different lengths, or of another dtype or shape; nothing is added.
        """
        values = self._fill_in(columns, rows=True)
        arrays = {name: self._cells[name].convert(value, rows=True) for name, value in values.items()}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise SchemaError(f"columns of different lengths: {text}", hint="give every column one row per transition")
        self._flush()
        for name, array in arrays.items():
            self._buffers[name].write(array)
        self._flushed += next(iter(lengths.values()), 0)

    def close(self) -> ShardInfo:
        """Publish the shard.

        Raises:
            ExperienceError: when it cannot be written; nothing appears then.
        """
        self._check_open()
        self._open = False
        try:
            self._flush()
            for buffer in self._buffers.values():
                buffer.end()
            with publishing(self.path, fsync=self._fsync) as scratch:
                return self._write(scratch)
        finally:
            self.abort()

    def abort(self) -> None:
        """Give up: nothing appears. Does nothing after :meth:`close`."""
        self._open = False
        self._store.close()
        self._buffers.clear()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        elif self._open:
            self.close()

    def _prepare(self, row: Mapping[str, Any]) -> None:
        cells = [self._cells[name] for name in self._fill_in(row, rows=False)]
        self._row = tuple((cell.stage, cell.accepts, cell.dtype, cell.shape, cell) for cell in cells)
        self._keys = tuple(row)

    def _fill_in(self, values: Mapping[str, Any], *, rows: bool) -> dict[str, Any]:
        """The values by column; the first ones decide what columns there are."""
        self._check_open()
        named = {SINGULAR.get(name, name): value for name, value in values.items()}
        if len(named) < len(values):
            raise SchemaError(f"a column is given twice, in singular and plural: {', '.join(values)}")
        if not named:
            raise SchemaError("no columns were given", hint="shard.append(observation=..., reward=..., ...)")
        if not self._cells:
            cells = {name: Cell(name, value, rows=rows) for name, value in named.items()}
            self._start(cells)
        if named.keys() != self._cells.keys():
            missing = [f"missing '{name}'" for name in self._cells if name not in named]
            extra = [f"unexpected '{name}'" for name in named if name not in self._cells]
            raise SchemaError(
                f"columns differ from the first row's: {', '.join(missing + extra)}",
                hint="give all columns with every row",
            )
        return named

    def _start(self, cells: dict[str, Cell]) -> None:
        row_bytes = sum(cell.column().row_bytes for cell in cells.values())
        self._stage_rows = max(1, min(_STAGE_ROWS, _STAGE_BYTES // row_bytes))
        for cell in cells.values():
            cell.stage = np.empty((self._stage_rows, *cell.shape), cell.dtype)
            self._buffers[cell.name] = ColumnBuffer(cell.dtype, cell.shape, self._store)
        self._cells = cells

    def _flush(self) -> None:
        """Hand the single rows over to their columns."""
        if self._staged:
            for name, cell in self._cells.items():
                self._buffers[name].write(cell.stage[: self._staged])
            self._flushed += self._staged
            self._staged = 0

    def _write(self, scratch: Path) -> ShardInfo:
        rows, columns = self.rows, in_order({name: cell.column() for name, cell in self._cells.items()})
        columns = create(scratch, columns, rows)
        stats: dict[str, Stats] = {}
        with opened(scratch, os.O_WRONLY) as fd:

            def write() -> None:
                for name, column in columns.items():
                    self._buffers[name].write_to(fd, column.offset, sync=self._fsync)

            def sum_up() -> None:
                stats.update({name: buffer.sum_up() for name, buffer in self._buffers.items()})

            # side by side: one is the system's work, the other NumPy's
            is_large = rows * sum(column.row_bytes for column in columns.values()) > _WORTH_A_THREAD
            in_threads(min(2, len(os.sched_getaffinity(0))) if is_large else 1, lambda task: task(), (write, sum_up))
        digests = {name: buffer.digest() for name, buffer in self._buffers.items()}
        columns = renamed(columns, digest=digests, stats=stats)
        names = (self.path.stem,)
        info = ShardInfo(self.path, "shard", rows, 0, columns, self._attributes, (0, rows), names)
        write_info(scratch, info)
        return replace(info, bytes=scratch.stat().st_size)

    def _check_open(self) -> None:
        if not self._open:
            raise ExperienceError(f"the writer of {self.path} is closed", hint="write inside the with block")


def seal(path: str | Path, *, attributes: Mapping[str, Any] | None = None, fsync: bool = True) -> ShardInfo:
    """Check a file's columns and make it a shard, in place; one that is a shard already only gets the attributes.

    Columns that are chunked or compressed are written anew as the format wants them, and so are integer rewards and
    flags of 0 and 1, which is what other languages have. Digests and statistics are computed.

    Args:
        path: an HDF5 file, with datasets of one length at its root; nobody else may be using it.
        attributes: as for :class:`ShardWriter`; they replace those of the same name.
        fsync: bring it to the disk.

    Raises:
        FormatError: not HDF5, or one with links, groups or data in other files.
        SchemaError: columns that are not numeric, or not of one length.
        DamagedError: cut short, or altered since it was sealed.
        ExperienceError: no access, or disk full: then the file may be half changed, and has to be written again.
    """
    path, new = Path(path), plain_attributes(attributes)
    if (info := read_sealed(path)) is None:
        with reading(path) as file:
            found = survey(file, path)
        if found.sealed:
            refuse(path)
        if found.reasons:
            return _rewrite(path, found, found.attributes | new, fsync)
        scanned = scan(path, found.columns, found.rows)
        write_info(path, ShardInfo(path, "shard", found.rows, 0, scanned, found.attributes | new, (0, found.rows)))
    elif not new.items() <= info.attributes.items():
        write_info(path, replace(info, attributes=info.attributes | new))
    if fsync:
        with named(ExperienceError, f"cannot bring {path} to the disk"):
            fsync_path(path)
    return read_info(path)


def _rewrite(path: Path, found: Survey, attributes: Mapping[str, Any], fsync: bool) -> ShardInfo:
    """Write the file anew through the writer, which makes the columns what they should be."""
    row_bytes = sum(column.row_bytes for column in found.columns.values())
    with named(ExperienceError, f"cannot write {path} anew"):
        needed, size, free = found.rows * row_bytes, path.stat().st_size, shutil.disk_usage(path.parent).free
    if needed > _PLENTY_BYTES + _MOST_COMPRESSED * size:  # a small file could fill a disk with zeros
        hint = "write all that it is to hold, and not with more compression than gzip has"
        raise FormatError(f"{path} claims {needed} bytes, and has {size}", hint=hint)
    if needed > free:
        hint = "make room there, or have it written contiguous and uncompressed"
        raise ExperienceError(f"cannot write {path} anew: it needs {needed} bytes, and {free} are free", hint=hint)
    step = max(1, _COPY_BYTES // row_bytes)
    with ShardWriter(path, attributes=attributes, fsync=fsync) as writer, reading(path) as file:
        for start in range(0, max(found.rows, 1), step):
            writer.extend(**{name: file[name][start : start + step] for name in found.columns})
    return read_info(path)
