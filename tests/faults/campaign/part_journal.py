"""The journal cut at every byte, every byte of it flipped; scratch files left behind, and run directories half made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import invariants
import torture
from cells import Cell, Part
from tiny import Tiny
from torture import ENDED, Torture

from rose_hpc.errors import JournalError
from rose_hpc.journal import Journal, read_journal
from rose_hpc.rundir import RunDir

#: trainings whose window keeps all banks: records that were synced come back only while what they made is there
TRAININGS = {
    "a configuration": Tiny("config", iterations=2, window=2),
    "shards kept": Tiny("config", iterations=2, window=2, shards=True),
    "several learners": Tiny("config", iterations=2, window=2, learners=2),
    "functions": Tiny("functions", iterations=2, window=2),
    "a population": Tiny("functions", iterations=2, window=2, environments=1, learners=2),
}
#: where a run is made, one step after the other
STEPS = ("run-folder-made", "run-subfolders-made", "run-config-written", "run-journal-made")
#: what may be in scratch of a run that was killed
STALE = {
    "a shard": ("0000-collect-env_1-0.1.h5", b"half a sh"),
    "a bank": ("0000-merge-0.1.h5", b"half a bank"),
    "a policy": ("0000-update-0.1-policy/weights", b"half"),
}


class Written:
    """A finished run of each training, and copies of it."""

    def __init__(self, shared: Torture, folder: Path) -> None:
        self.shared = shared
        self.folder = folder
        self._runs: dict[str, Path] = {}

    def run(self, training: str) -> Path:
        """Its directory, as it ended."""
        if training not in self._runs:
            with self.shared.trial(TRAININGS[training]) as trial:
                if trial.start().wait(torture.PATIENCE_S) not in ENDED:
                    raise RuntimeError(f"{training} did not end")
                self._runs[training] = shutil.copytree(trial.run, self.folder / f"finished {training}")
        return self._runs[training]

    def journals(self, training: str) -> list[str]:
        """Its journals: its own, and its learners'."""
        run = self.run(training)
        return sorted(str(path.relative_to(run)) for path in run.rglob("journal.jsonl"))


def read_cut(data: bytes, path: Path) -> list[str]:
    """Cut at each byte, what is read is a prefix, and what is appended then follows it."""
    path.write_bytes(data)
    whole, found = read_journal(path), []
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        wanted = whole[: sum(end <= cut for end in ends)]
        if read_journal(path) != wanted:
            found.append(f"I2: cut at byte {cut} it is no prefix")
        book = Journal(path)
        book.append("end", state="stopped")
        book.close()
        if read_journal(path)[:-1] != wanted:
            found.append(f"I1: cut at byte {cut}, what is appended does not follow the prefix")
    return found


def read_flipped(data: bytes, path: Path) -> list[str]:
    """Each byte flipped in three ways: an error that names its line, or, of the last line, one record less."""
    path.write_bytes(data)
    whole, found = read_journal(path), []
    last = data[:-1].rindex(b"\n") + 1
    for position, change in ((p, c) for p in range(len(data)) for c in (0x01, 0x20, 0xFF)):
        changed = bytearray(data)
        changed[position] ^= change
        path.write_bytes(changed)
        line = data[:position].count(b"\n") + 1
        try:
            records: Any = read_journal(path)
        except JournalError as error:
            records = error.message
        wanted = records == whole[:-1] if position >= last else f"line {line} is damaged" in records
        if not wanted and f"line {line} is damaged" not in records:
            found.append(f"I2: byte {position} flipped by {change:#x}: {str(records)[:200]}")
    return found


def go_on_cut(written: Written, training: str, journal: str, record: int, torn: bool) -> list[str]:
    """What had been recorded from one record on is forgotten, half of it left or none: it is done again, equally.

    Without the first one, which no crash takes away, nobody knows what the run is: refused, and nothing changed.
    """
    with written.shared.trial(TRAININGS[training]) as trial:
        shutil.copytree(written.run(training), trial.run)
        lines = (trial.run / journal).read_bytes().splitlines(keepends=True)
        rest = lines[record][: len(lines[record]) // 2] if torn else b""
        (trial.run / journal).write_bytes(b"".join(lines[:record]) + rest)
        if record or not list((trial.run / journal).parent.glob("iter-*")):
            trial.finish()
            return trial.violations
        before = _committed(trial.run)
        driver = trial.start()
        if trial.settle(driver) != 1 or "somebody has emptied it" not in driver.stderr:
            trial.violations.append(f"it was not refused: {driver.stderr[-300:]}")
        if _committed(trial.run) != before:
            trial.violations.append("I1: iterations were changed")
        return trial.violations


def _committed(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.rglob("iter-*/**/*")) if path.is_file()}


def go_on_beside(written: Written, training: str, what: str) -> list[str]:
    """A run that was killed has something of an attempt in scratch: it is not used, and does not stay."""
    with written.shared.trial(TRAININGS[training]) as trial:
        torture.die_at(trial, "rank-recorded")
        name, data = STALE[what]
        for run in invariants.parts(RunDir(trial.run)):
            stale = run.scratch / name
            stale.parent.mkdir(exist_ok=True)
            stale.write_bytes(data)
        trial.finish()
        return trial.violations


def begin_half_made(written: Written, training: str, step: str) -> list[str]:
    """A directory that a killed ``run`` had begun to make is taken by the next one, and the run is as any other."""
    with written.shared.trial(TRAININGS[training]) as trial:
        if not torture.die_at(trial, step):
            return [f"it did not come to {step}"]
        trial.finish()
        return trial.violations


def _of_journals(written: Written, training: str, long: bool) -> Iterator[Cell]:
    works: dict[str, Callable[[bytes, Path], list[str]]] = {"cut at": read_cut, "flipped at": read_flipped}
    for journal in written.journals(training):
        for how, work in works.items():
            data = (written.run(training) / journal).read_bytes()
            name = f"{training}: {journal} {how} every byte"
            yield name, lambda work=work, data=data: work(data, written.folder / "journal.jsonl")
        for record in range(len(data.splitlines()))[:: 1 if long else 9]:
            for torn in (False, True) if long else (True,):
                name = f"{training}: {journal} cut at record {record}{', torn' if torn else ''}"
                yield name, lambda j=journal, r=record, t=torn: go_on_cut(written, training, j, r, t)


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """Everything of every training; the short form: of one training, each ninth record."""
    with Torture(folder) as shared:
        written = Written(shared, folder)

        def each() -> Iterator[Cell]:
            for training in list(TRAININGS)[: None if long else 1]:
                yield from _of_journals(written, training, long)
                for what in STALE:
                    yield f"{training}: {what} in scratch", lambda t=training, w=what: go_on_beside(written, t, w)
                for step in STEPS:
                    yield f"{training}: killed at {step}", lambda t=training, s=step: begin_half_made(written, t, s)

        yield each()


PART = Part(
    "journal",
    "the journal cut at every byte and every byte flipped; stale scratch files; half-made run directories",
    cells,
)
