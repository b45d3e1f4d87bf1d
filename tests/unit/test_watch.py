"""Following a journal that somebody else writes: whole lines once, in order, and of a long past only its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from rose_hpc import rundir
from rose_hpc.journal import Journal, encode
from rose_hpc.rundir import RunDir
from rose_hpc.slurm.watch import _TOLD, Follow, Tail


class Told:
    """Remembers what it was told, and how far the run was then."""

    def __init__(self) -> None:
        self.records: list[tuple[int, int]] = []

    def started(self, *what: object) -> None:
        """Nothing to remember."""

    def recorded(self, record: dict, progress) -> None:
        self.records.append((record["seq"], progress.iteration))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create("toy", tmp_path / "r")


def test_whole_lines_come_once(tmp_path):
    """A line that is half written comes when it is whole, and no line comes twice."""
    path, lines = tmp_path / "journal.jsonl", [encode({"seq": n, "kind": "rank"}) for n in range(3)]
    path.write_bytes(b"")
    tail = Tail(path)
    assert list(tail.new()) == []
    written = b"".join(lines)
    seen = []
    for end in range(len(written) + 1):
        path.write_bytes(written[:end])
        seen += [record["seq"] for record in tail.new()]
        assert len(seen) == written[:end].count(b"\n")
    assert seen == [0, 1, 2]


def test_of_a_long_past_only_the_end_is_told(run):
    """Who begins to watch late is told the last iterations, each with the progress of its time, and all of the new."""
    book, told = Journal(run.journal), Told()
    book.append("run", name="toy", environments=[])
    for number in range(_TOLD + 30):
        book.append("checkpoint", iteration=number)
    follow = Follow(run, told)
    follow.tell()
    assert told.records == [(seq, seq) for seq in range(31, _TOLD + 31)]
    assert follow.progress.iteration == _TOLD + 30
    book.append("end", state="stopped", reason="")
    follow.tell()
    assert told.records[-1] == (_TOLD + 31, _TOLD + 30)
    assert len(told.records) == _TOLD + 1
    book.close()
