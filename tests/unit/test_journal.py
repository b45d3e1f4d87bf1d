"""The journal: what was appended is read back, what is damaged is never read, what is torn has not happened."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rose_hpc import journal
from rose_hpc.errors import JournalError, OwnedError, RunError
from rose_hpc.journal import Bookmark, Journal, decode, encode, read_journal, scan_journal

TEXT = st.text(st.characters(), max_size=20)  # lone surrogates too: file names that are not UTF-8 have them
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
RECORDS = st.dictionaries(TEXT, JSON, max_size=6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
def written(path: Path) -> list[dict]:
    """Three records on the disk, the last with what could confuse a reader: quotes, newlines, a forged checksum."""
    book = Journal(path)
    records = [
        book.append("run", name="toy", seed=7),
        book.append("rank", environment="env_1", rows=3, digest="ab"),
        book.append("stage", stage="check", reward=2.5, note='a "sum":"00000000"}\nü \\'),
    ]
    book.close()
    return records


@settings(deadline=None)
@given(RECORDS)
def test_any_record_survives(record):
    """What JSON can hold is one line, and reads back equal."""
    line = encode(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line[:-1]) == record


@settings(deadline=None)
@given(RECORDS, st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_byte_is_never_read(record, position, change):
    """A line with one byte changed is refused, whichever byte."""
    line = bytearray(encode({"kind": "x", **record})[:-1])
    line[position % len(line)] ^= change
    with pytest.raises(ValueError, match="checksum"):
        decode(bytes(line))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x"])
def test_what_json_cannot_hold_is_refused(path, value):
    """A value that could not be read back equal is an error at once, and nothing of it is written."""
    book = Journal(path)
    with pytest.raises((ValueError, TypeError)):
        book.append("stage", value=value)
    book.append("stage", value=1)
    book.close()
    assert [record["value"] for record in read_journal(path)] == [1]


def test_records_are_numbered_and_dated(path, written):
    """Every line is an object that any JSON reader takes, with seq from 0, a time and a kind."""
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert [line["seq"] for line in lines] == [0, 1, 2]
    assert [line["kind"] for line in lines] == ["run", "rank", "stage"]
    assert all(line["time"] > 1e9 and len(line["sum"]) == 8 for line in lines)
    assert [{k: v for k, v in line.items() if k != "sum"} for line in lines] == written == read_journal(path)


def test_a_cut_journal_is_a_prefix(path, written, monkeypatch):
    """Cut at any byte, a journal reads as the records that are whole, and the next append follows them."""
    monkeypatch.setattr(journal.os, "fdatasync", lambda fd: None)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert read_journal(path) == written[:whole]
        book = Journal(path)
        book.append("end", state="stopped")
        book.close()
        records = read_journal(path)
        assert records[:-1] == written[:whole]
        assert (records[-1]["kind"], records[-1]["seq"]) == ("end", whole)


def test_no_changed_byte_is_believed(path, written):
    """A byte changed before the last line is an error that names it; in the last one it drops that record."""
    data = path.read_bytes()
    last = data[:-1].rindex(b"\n") + 1

    def parse(changed: bytes) -> list[dict]:
        return list(journal._scan(io.BytesIO(changed), path, Bookmark()))

    assert parse(data) == written
    for position in range(len(data)):
        line = data[:position].count(b"\n") + 1
        for change in {*(1 << bit for bit in range(8)), 0xFF, data[position] ^ ord("\n")} - {0}:
            changed = bytearray(data)
            changed[position] ^= change
            if position >= last and changed[position] != ord("\n"):
                assert parse(changed) == written[:-1]
                continue
            # before the last line, or a new newline in it: then it is two lines, and the first is not the last
            with pytest.raises(JournalError) as caught:
                parse(changed)
            text = f"line {line} is damaged ", f"the {line - 1} records before it are sound"
            assert all(part in caught.value.message for part in text)


def test_a_missing_or_repeated_line_is_damage(path, written):
    """Lines that are each sound but not in sequence are an error: none may be lost, swapped or repeated."""
    lines = path.read_bytes().splitlines(keepends=True)
    for order in ([1, 2], [0, 2, 1], [0, 0, 1, 2]):
        path.write_bytes(b"".join(lines[i] for i in order))
        with pytest.raises(JournalError, match=r"its seq is \d"):
            read_journal(path)
        with pytest.raises(JournalError):
            Journal(path)
    assert path.read_bytes() == b"".join(lines[i] for i in order), "a damaged journal must not be cut"


def test_a_bookmark_is_read_on_from(path, written):
    """Who has read a part reads the rest, and appends after all; damage and gaps are numbered as in the whole."""
    mark = Bookmark()
    records = scan_journal(path, mark)
    assert [next(records), next(records)] == written[:2]
    assert mark == Bookmark(2, path.read_bytes().index(b'{"seq":2'))
    rest = []
    book = Journal(path, rest.append, mark)
    book.append("end", state="stopped")
    book.close()
    assert rest == written[2:]
    assert mark.records == 2, "it is the reader's own"
    assert [record["seq"] for record in scan_journal(path, mark)] == [2, 3]
    assert list(scan_journal(path, mark)) == []
    assert [record["seq"] for record in read_journal(path)] == [0, 1, 2, 3]
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(RunError, match="was cut while it was read"):
        Journal(path, mark=mark)
    path.write_bytes(data + data.splitlines(keepends=True)[1] + b"{}\n")
    with pytest.raises(JournalError, match=r"line 5 is damaged \(its seq is 1\); the 4 records"):
        list(scan_journal(path, mark))


def test_no_journal_is_no_run(path):
    """Reading where there is no journal says that this is not a run."""
    with pytest.raises(RunError, match="is not a run: it has no journal"):
        read_journal(path)


def _fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes 20 bytes more, and then none."""
    write, room = os.write, [20]

    def full(fd: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: room.pop()])

    monkeypatch.setattr(journal.os, "write", full)


def test_a_full_disk_leaves_whole_records(path, written, monkeypatch):
    """A record that was written only in part is taken back, and said to be; the journal goes on afterwards."""
    book = Journal(path)
    _fill(monkeypatch)
    with pytest.raises(RunError, match="No space left on device; make room there, then go on"):
        book.append("end", state="failed")
    monkeypatch.undo()
    assert path.read_bytes().count(b"\n") == 3
    assert read_journal(path) == written
    book.append("end", state="stopped")
    book.close()
    assert [record["kind"] for record in read_journal(path)][3:] == ["end"]


def test_nothing_follows_a_torn_line(path, written, monkeypatch):
    """Where half a line can be neither completed nor taken back, it is taken back before the next one is written."""
    book = Journal(path)
    _fill(monkeypatch)

    def refuses(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(journal.os, "ftruncate", refuses)
    for cause in ("No space left", "Input/output error"):
        with pytest.raises(RunError, match=cause):
            book.append("end", state="failed")
        assert read_journal(path) == written
    monkeypatch.undo()
    book.append("end", state="stopped")
    book.close()
    assert [record["kind"] for record in read_journal(path)][3:] == ["end"]


def test_nothing_is_written_after_another_driver_has(path, written):
    """A driver that was taken over without knowing it, as one that was suspended, cannot damage the journal."""
    old, new = Journal(path), Journal(path)
    new.append("job", epoch=1)
    with pytest.raises(OwnedError, match="another driver"):
        old.append("rank", environment="env_1")
    new.append("end", state="stopped")
    old.close()
    new.close()
    assert [record["kind"] for record in read_journal(path)][3:] == ["job", "end"]


def test_no_record_is_kept(path):
    """A journal of many records takes no memory: they go by, once, in order, to who asked for them."""
    path.write_bytes(b"".join(encode({"seq": n, "kind": "rank", "text": "x" * 1000}) for n in range(2000)))
    gc.collect()
    tracemalloc.start()
    try:
        seen: list[int] = []
        again = Journal(path, lambda record: seen.append(record["seq"]))
        again.close()
        assert sum(1 for _ in scan_journal(path)) == 2000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == list(range(2000))
    assert peak < 500_000  # the file has two million bytes


def test_what_is_appended_during_a_sync_is_synced_by_the_next(path, monkeypatch):
    """No record stays off the disk because it was appended while another thread was in fsync."""
    book, inside, go_on, synced = Journal(path), threading.Event(), threading.Event(), []

    def slow(fd: int) -> None:
        synced.append(os.fstat(fd).st_size)
        if len(synced) == 1:
            inside.set()
            assert go_on.wait(10)

    monkeypatch.setattr(journal.os, "fdatasync", slow)
    book.append("run")
    beat = threading.Thread(target=book.sync)
    beat.start()
    assert inside.wait(10)
    book.append("job")
    go_on.set()
    beat.join()
    book.close()
    assert synced[-1] == path.stat().st_size


def test_a_failed_sync_is_tried_again(path, monkeypatch):
    """When the disk refuses to sync, the records are still owed: the next sync brings them."""
    book, calls = Journal(path), []

    def refuses_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(journal.os, "fdatasync", refuses_once)
    book.append("run")
    book.sync()
    start = path.stat().st_size
    book.append("job")
    with pytest.raises(RunError, match=r"to the disk: Input/output error; .*go on"):
        book.sync()
    book.append("rank")
    whole = path.read_bytes()
    with open(path, "r+b") as file:  # what Linux does with pages that it could not write: it takes them for written
        file.seek(start)
        file.write(bytes(len(whole) - start))
    book.sync()
    assert path.read_bytes() == whole
    book.sync()
    assert len(calls) == 3
    book.close()
    book.close()  # idempotent


def test_a_journal_is_closed_whatever_its_disk_says(path, monkeypatch):
    """A sync that fails at the end is told, and no file is left open."""
    book = Journal(path)
    book.append("run")

    def refuses(fd: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(journal.os, "fdatasync", refuses)
    fds = Path("/proc/self/fd")
    before = sum(1 for _ in fds.iterdir())
    with pytest.raises(RunError, match="Read-only"):
        book.close()
    book.close()
    assert sum(1 for _ in fds.iterdir()) == before - 1
