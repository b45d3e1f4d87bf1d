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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from rose_hpc import failpoints
from rose_hpc.errors import JournalError, OwnedError, RunError
from rose_hpc.refusals import named

Record = Mapping[str, Any]

#: an appended record is on the disk (fsync) at the latest this many seconds later
SYNC_INTERVAL_S = 1.0
_JSON = json.JSONDecoder()
_AS_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_SUM = re.compile(rb',"sum":"[0-9a-f]{8}"}')


def encode(record: Record) -> bytes:
    """One line of the journal, its ``sum`` added, newline included.

    Raises:
        ValueError: for what JSON cannot hold (NaN and infinities too).
    """
    return _sealed(body_of(record))


def body_of(record: Record) -> bytes:
    """A record as a JSON object, without ``sum``.

    Raises:
        ValueError: as :func:`encode`.
    """
    try:
        return _AS_JSON(record).encode()
    except UnicodeEncodeError:  # half a surrogate pair, as in a file name that is not UTF-8: escaped, it is legal JSON
        return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def _sealed(body: bytes) -> bytes:
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
    text = (head + b"}").decode()
    record, end = _JSON.raw_decode(text)
    if end != len(text) or not isinstance(record, dict):
        raise ValueError("it is not one object")
    return record


@dataclass
class Bookmark:
    """How far a journal was read: so many records, in so many bytes. Who has it reads on from there, and moves it."""

    records: int = 0
    size: int = 0


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All records, in order: :func:`scan_journal` for those who need them at once."""
    return list(scan_journal(path))


def scan_journal(path: Path, mark: Bookmark | None = None) -> Iterator[dict[str, Any]]:
    """All records, in order, none of them kept; or those that follow ``mark``.

    A torn last line has not happened and is left out.

    Raises:
        RunError: when there is no journal, or it cannot be read.
        JournalError: when a line inside is damaged; it names the line and how many records before it are usable.
    """
    with named(RunError, f"cannot read {path}"):
        try:
            file = open(path, "rb")  # noqa: SIM115 - closed two lines below
        except FileNotFoundError:
            raise RunError(f"{path.parent} is not a run: it has no {path.name}") from None
        with file:
            yield from _scan(file, path, mark or Bookmark())


def _scan(file: BinaryIO, path: Path, mark: Bookmark) -> Iterator[dict[str, Any]]:
    """The records in a file after ``mark``, which is moved to the end of each (a torn tail is not among them)."""
    if file.seek(0, os.SEEK_END) < mark.size:
        raise RunError(f"{path} was cut while it was read", hint="try again")
    file.seek(mark.size)
    for number, line in enumerate(file, mark.records):
        if not line.endswith(b"\n"):
            return  # torn
        try:
            record = decode(line[:-1])
            if record["seq"] != number:
                raise ValueError(f"its seq is {record['seq']}")
        except (ValueError, KeyError, RecursionError) as error:
            if not file.read(1) and not _begins_soundly(line):
                return  # the last line: torn inside, though its newline is there
            raise JournalError(
                f"{path}, line {number + 1} is damaged ({error}); the {number} records before it are sound",
                hint="copy the run directory, then cut the journal before that line to go on from there",
            ) from error
        mark.records, mark.size = number + 1, mark.size + len(line)
        yield record


def _begins_soundly(line: bytes) -> bool:
    """Whether a damaged line is two, with the newline between them lost: dropping it would drop a sound record too."""
    for mark in _SUM.finditer(line):
        try:
            decode(line[: mark.end()])
        except ValueError:
            continue
        return True
    return False


def stamped(kind: str, those: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records of one kind and of now, but without a place in a journal."""
    now = round(time.time(), 3)
    return [{"time": now, "kind": kind, **fields} for fields in those]


class Journal:
    """The owner's side: reads what is there, cuts a torn tail off, and appends.

    Args:
        path: of the journal.
        take: is given every record that is there, in order; none is kept here.
        mark: where to begin reading, for those who have read what comes before.

    Raises:
        JournalError: as :func:`scan_journal` does; nothing is cut then.
        RunError: when it cannot be opened, read or cut.
    """

    def __init__(
        self, path: Path, take: Callable[[dict[str, Any]], object] | None = None, mark: Bookmark | None = None
    ) -> None:
        self.path = path
        self._count = self._size = 0  # of the records that are whole
        with named(RunError, f"cannot write {path}"):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._read(take, replace(mark) if mark else Bookmark())
            failpoints.hit("journal-read")
            with named(RunError, f"cannot write {path}"):
                self._is_torn = os.fstat(self._file).st_size > self._size
                if self._is_torn:
                    self._cut()
                    failpoints.hit("journal-cut")
        except BaseException:
            with suppress(OSError):
                os.close(self._file)
            raise
        self._synced_at = time.monotonic()
        self._unsynced = bytearray()  # the last bytes of the file, which may not be on the disk
        self._must_write_again = False
        self._syncing, self._changing = threading.Lock(), threading.Lock()

    def _read(self, take: Callable[[dict[str, Any]], object] | None, mark: Bookmark) -> None:
        with named(RunError, f"cannot read {self.path}"), open(self.path, "rb") as file:
            for record in _scan(file, self.path, mark):
                if take is not None:
                    take(record)
        self._count, self._size = mark.records, mark.size

    def append(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Write one record: :meth:`append_all` for one."""
        return self.append_all(kind, [fields])[0]

    def append_all(self, kind: str, those: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Write records of one kind at once; they survive the process then, and the machine within SYNC_INTERVAL_S.

        Raises:
            RunError: when they could not be written whole (disk full): none of them counts then. Also when they were
                written, but the disk refuses what should be on it by now.
            OwnedError: when somebody else has written to the journal.
        """
        records = stamped(kind, those)
        first = self._count
        self.write([body_of(record) for record in records])
        return [{"seq": seq, **record} for seq, record in enumerate(records, first)]

    def write(self, bodies: Sequence[bytes]) -> None:
        """Write records that :func:`body_of` has made of :func:`stamped` ones, as :meth:`append_all` does."""
        failpoints.hit("journal-append")
        lines = [_sealed(b'{"seq":%d,%s' % (seq, body[1:])) for seq, body in enumerate(bodies, self._count)]
        with named(RunError, f"cannot write {self.path}"):
            self._write(b"".join(lines))
        failpoints.hit("journal-appended")
        self._count += len(lines)
        if time.monotonic() - self._synced_at > SYNC_INTERVAL_S:
            self.sync()

    def _write(self, line: bytes) -> None:
        if self._is_torn:
            self._cut()
        if os.fstat(self._file).st_size != self._size:
            raise OwnedError(
                f"{self.path} was written to by another driver, which has taken the run over",
                hint="leave the run to it",
            )
        self._is_torn = True
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with suppress(OSError):  # the next append tries that again, and who opens it next drops the torn line
                self._cut()
            raise
        self._is_torn = False
        with self._changing:
            self._size += len(line)
            self._unsynced += line

    def _cut(self) -> None:
        os.ftruncate(self._file, self._size)
        self._is_torn = False

    def sync(self) -> None:
        """Bring what was appended to the disk (the group commit); any thread may call it.

        Raises:
            RunError: when the disk refuses; the next call tries again.
        """
        with self._syncing, named(RunError, f"cannot bring {self.path} to the disk"):
            with self._changing:  # what is appended meanwhile is left for the next call
                start, waiting = self._size - len(self._unsynced), bytes(self._unsynced)
            if waiting:
                failpoints.hit("journal-unsynced")
                if self._must_write_again:
                    self._write_again(waiting, start)
                self._must_write_again = True
                os.fdatasync(self._file)
                self._must_write_again = False
                with self._changing:
                    del self._unsynced[: len(waiting)]
            self._synced_at = time.monotonic()
        failpoints.hit("journal-synced")

    def _write_again(self, data: bytes, start: int) -> None:
        # After a failed fsync Linux takes the pages for written: another one would succeed, though they are lost.
        file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)  # not the one that only appends
        try:
            while data:
                count = os.pwrite(file, data, start)
                data, start = data[count:], start + count
        finally:
            os.close(file)

    def close(self) -> None:
        """Sync and close; idempotent.

        Raises:
            RunError: as :meth:`sync` does; closed it is all the same.
        """
        if self._file < 0:
            return
        try:
            self.sync()
        finally:
            file, self._file = self._file, -1
            with named(RunError, f"cannot write {self.path}"):
                os.close(file)
