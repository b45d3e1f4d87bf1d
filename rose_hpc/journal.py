"""The journal: append-only JSON lines, each with its checksum; what has no record has not happened.

A line is one object: ``seq`` (from 0, without gaps), ``time`` (Unix seconds), ``kind``, the fields of that kind, and
last ``sum``, the CRC-32 (8 hex digits) of the line's own bytes without that last field. CRC-32 finds every single
flipped byte, and any language has it. Only the driver that owns the run appends; anybody may read, at any time.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rose_hpc import failpoints
from rose_hpc.errors import JournalError, RunError

Record = Mapping[str, Any]

#: an appended record is on the disk (fsync) at the latest this many seconds later
SYNC_INTERVAL_S = 1.0
_SUM = re.compile(rb',"sum":"[0-9a-f]{8}"}')


def encode(record: Record) -> bytes:
    """One line of the journal, its ``sum`` added, newline included.

    Raises:
        ValueError: for what JSON cannot hold (NaN and infinities too).
    """
    try:
        body = json.dumps(record, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, as in a file name that is not UTF-8: escaped, it is legal JSON
        body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return b'%s,"sum":"%08x"}\n' % (body[:-1], zlib.crc32(body))


def decode(line: bytes) -> dict[str, Any]:
    """The record of one line (without its newline).

    Raises:
        ValueError: when the line is not whole, or not what was written.
    """
    head, mark, tail = line.rpartition(b',"sum":"')
    if not mark or len(tail) != 10 or not tail.endswith(b'"}'):
        raise ValueError("no checksum")
    if b"%08x" % zlib.crc32(head + b"}") != tail[:8]:
        raise ValueError("its checksum does not fit")
    record: dict[str, Any] = json.loads(head + b"}")
    return record


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All records, in order. A torn last line has not happened and is left out.

    Raises:
        RunError: when there is no journal.
        JournalError: when a line inside is damaged; it names the line and how many records before it are usable.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path.parent} is not a run: it has no {path.name}") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    return _parse(data, path)[0]


def _parse(data: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records in ``data`` and the number of bytes they take (a torn tail is not among them)."""
    records: list[dict[str, Any]] = []
    good = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
        try:
            record = decode(line)
            if record["seq"] != number - 1:
                raise ValueError(f"its seq is {record['seq']}")
        except (ValueError, KeyError) as error:
            if number == len(lines) - 1 and not lines[-1] and not _begins_soundly(line):
                break  # the last line: torn inside, though its newline is there
            raise JournalError(
                f"{path}, line {number} is damaged ({error}); the {len(records)} records before it are sound",
                hint="copy the run directory, then cut the journal before that line to go on from there",
            ) from error
        records.append(record)
        good += len(line) + 1
    return records, good


def _begins_soundly(line: bytes) -> bool:
    """Whether a damaged line is two, with the newline between them lost: dropping it would drop a sound record too."""
    for mark in _SUM.finditer(line):
        try:
            decode(line[: mark.end()])
        except ValueError:
            continue
        return True
    return False


class Journal:
    """The owner's side: reads what is there, cuts a torn tail off, and appends.

    Attributes:
        records: every record so far, the ones found and the ones appended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            data = path.read_bytes()
            self.records, good = _parse(data, path)
            failpoints.hit("journal-read")
            if good < len(data):
                os.ftruncate(self._file, good)
                failpoints.hit("journal-cut")
        except BaseException:
            os.close(self._file)
            raise
        self._synced_at = time.monotonic()
        self._dirty = False
        self._syncing = threading.Lock()

    def append(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Write one record; it survives the process at once, and the machine within SYNC_INTERVAL_S.

        Raises:
            RunError: when it could not be written whole (disk full); nothing of it counts then.
        """
        failpoints.hit("journal-append")
        record = {"seq": len(self.records), "time": round(time.time(), 3), "kind": kind, **fields}
        line = encode(record)
        start = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            os.ftruncate(self._file, start)
            raise RunError(f"cannot write {self.path}: {error.strerror}", hint="the run can be resumed") from error
        failpoints.hit("journal-appended")
        self.records.append(record)
        self._dirty = True
        if time.monotonic() - self._synced_at > SYNC_INTERVAL_S:
            self.sync()
        return record

    def sync(self) -> None:
        """Bring what was appended to the disk (the group commit); any thread may call it.

        Raises:
            OSError: when the disk refuses; the next call tries again.
        """
        with self._syncing:  # who comes second returns only when its records, too, are on the disk
            if self._dirty:
                self._dirty = False  # before, so that what is appended meanwhile is left for the next call
                try:
                    failpoints.hit("journal-unsynced")
                    os.fdatasync(self._file)
                except OSError:
                    self._dirty = True
                    raise
            self._synced_at = time.monotonic()
        failpoints.hit("journal-synced")

    def close(self) -> None:
        """Sync and close; idempotent."""
        if self._file >= 0:
            self.sync()
            os.close(self._file)
            self._file = -1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)
