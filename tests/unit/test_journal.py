"""The journal: what was appended is read back, what is damaged is never read, what is torn has not happened."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rose_hpc import journal
from rose_hpc.errors import JournalError, RunError
from rose_hpc.journal import Journal, decode, encode, read_journal

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
    book.append("run", name="toy", seed=7)
    book.append("rank", environment="env_1", rows=3, digest="ab")
    book.append("stage", stage="check", reward=2.5, note='a "sum":"00000000"}\nü \\')
    book.close()
    return book.records


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
    for position in range(len(data)):
        for change in (0x20, 0x80, data[position] ^ ord("\n")):
            if not change:
                continue  # it is a newline already
            changed = bytearray(data)
            changed[position] ^= change
            path.write_bytes(changed)
            line = data[:position].count(b"\n") + 1
            if position < last:
                with pytest.raises(JournalError, match=f"line {line} is damaged.* the {line - 1} records before it"):
                    read_journal(path)
                continue
            if changed[position] == ord("\n"):  # then it is two lines, and the first is not the last
                with pytest.raises(JournalError, match=f"line {line} is damaged"):
                    read_journal(path)
            else:
                assert read_journal(path) == written[:-1]


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


def test_no_journal_is_no_run(path):
    """Reading where there is no journal says that this is not a run."""
    with pytest.raises(RunError, match="is not a run: it has no journal"):
        read_journal(path)


def test_a_full_disk_leaves_whole_records(path, written, monkeypatch):
    """A record that was written only in part is taken back, and said to be; the journal goes on afterwards."""
    book = Journal(path)
    write = os.write
    monkeypatch.setattr(journal.os, "write", lambda fd, data: write(fd, data[:20]))
    with pytest.raises(RunError, match="No space left on device; the run can be resumed"):
        book.append("end", state="failed")
    monkeypatch.undo()
    assert read_journal(path) == written
    book.append("end", state="stopped")
    book.close()
    assert [record["kind"] for record in read_journal(path)][3:] == ["end"]


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
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(journal.os, "fdatasync", refuses_once)
    book.append("run")
    with pytest.raises(OSError, match="Input/output"):
        book.sync()
    book.sync()
    book.sync()
    assert len(calls) == 2
    book.close()
    book.close()  # idempotent
