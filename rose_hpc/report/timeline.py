"""Who did what, when and where: the records of a run as bars on lanes. Pure.

A bar ends when its record was written, so it includes sealing and publishing; a rank's begins its ``seconds`` earlier.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rose_hpc.report.words import at_least, word
from rose_hpc.slurm.records import JobRecord

Record = Mapping[str, Any]

#: a rank that took this many times its iteration's median is a straggler
STRAGGLES = 1.5
#: fewer ranks than this have no median worth the name
_LEAST_RANKS = 3
#: seconds, and part of a bar, by which two on one slot may overlap: records are written after the rank has ended
_OVERLAP_S, _OVERLAP = 0.02, 0.05


@dataclass(frozen=True)
class Bar:
    """Something that took time; times are Unix seconds.

    Attributes:
        kind: ``collect, merge, update, check``; ``straggler``: a rank that was slow; ``failed``: an attempt that was;
            ``starting``: from a driver's begin to its first work; ``between``: neither; ``queue``: a job that waits.
        who: environment, stage or job.
        node: where, if that is known.
    """

    start: float
    end: float
    kind: str
    who: str
    iteration: int = -1
    node: str = ""
    rows: int = 0

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end - self.start


@dataclass(frozen=True)
class Driver:
    """One driver: from its record to the last one before the next driver's.

    Attributes:
        job: Slurm's id of the job it ran in; "" for none.
        nodes: how many its job had, else how many its ranks named, at least one.
        submitted: when its job was; None without one, or when another driver was in it before.
        end: how it ended, in the journal's words; "" when it did not say.
    """

    record: Record
    job: str
    began: float
    ended: float
    nodes: int = 1
    submitted: float | None = None
    end: str = ""
    reason: str = ""

    @property
    def node_hours(self) -> float:
        """Nodes times hours, from the first to the last record."""
        return self.nodes * (self.ended - self.began) / 3600


@dataclass(frozen=True)
class Timeline:
    """All bars of a run; ranks and stages in the order of their records, drivers and queue by time."""

    drivers: tuple[Driver, ...] = ()
    ranks: tuple[Bar, ...] = ()
    stages: tuple[Bar, ...] = ()
    queue: tuple[Bar, ...] = ()

    @property
    def start(self) -> float:
        """The first moment."""
        return min([*(bar.start for bar in self.queue), *(driver.began for driver in self.drivers)], default=0.0)

    @property
    def end(self) -> float:
        """The last one."""
        return max([*(bar.end for bar in self.queue), *(driver.ended for driver in self.drivers)], default=0.0)

    @property
    def driven_s(self) -> float:
        """Seconds during which a driver was at work."""
        return sum(driver.ended - driver.began for driver in self.drivers)

    def of(self, iteration: int) -> Timeline:
        """The ranks and stages of one iteration."""
        ranks, stages = (tuple(bar for bar in bars if bar.iteration == iteration) for bars in (self.ranks, self.stages))
        return Timeline(self.drivers, ranks, tuple(bar for bar in stages if bar.kind != "starting"))


def read_timeline(records: Iterable[Record], jobs: Sequence[JobRecord] = ()) -> Timeline:
    """The bars of a journal, with what was submitted for it."""
    reader = _Reader()
    for record in records:
        reader.read(record)
    reader.close()
    drivers, queue = _with_jobs(reader.drivers, jobs)
    return Timeline(tuple(drivers), tuple(reader.ranks), tuple(reader.stages), tuple(queue))


def slots(bars: Iterable[Bar]) -> list[tuple[int, Bar]]:
    """Each bar with the lowest slot that was free, the one the same environment had before if that is.

    Journals do not say on which core a rank ran: a slot is a line in a picture.
    """
    ends: list[float] = []
    last: list[str] = []
    placed = []
    for bar in sorted(bars, key=lambda bar: (bar.start, bar.end)):
        slack = _OVERLAP_S + _OVERLAP * bar.seconds
        free = [slot for slot, end in enumerate(ends) if end <= bar.start + slack]
        slot = min(free, key=lambda slot: (last[slot] != bar.who, slot), default=len(ends))
        if slot == len(ends):
            ends.append(0.0)
            last.append("")
        ends[slot], last[slot] = bar.end, bar.who
        placed.append((slot, bar))
    return placed


@dataclass
class _Reader:
    """The fold: ``cursor`` is when the last thing that took the driver's time ended."""

    drivers: list[Driver] = field(default_factory=list)
    ranks: list[Bar] = field(default_factory=list)
    stages: list[Bar] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)  # named by the ranks of this driver
    ended: float = 0.0  # its last record so far
    cursor: float = 0.0
    idle: bool = True  # nothing done yet by this driver
    collecting: list[Bar] = field(default_factory=list)

    def read(self, record: Record) -> None:
        time, kind = at_least(record, "time"), record["kind"]
        match kind:
            case "job":
                self.close()
                self.drivers.append(Driver(record, word(record, "job"), time, time))
                self.nodes, self.ended, self.cursor, self.idle = set(), time, time, True
            case "rank":
                self.collecting.append(self._bar(record, "collect", time))
            case "attempt":
                self._failed(self._bar(record, "failed", time))
            case "stage":
                self._stage(record, time)
            case "checkpoint":
                self.cursor = max(self.cursor, time)
            case "end" if self.drivers:
                end, reason = word(record, "state"), word(record, "reason")
                self.drivers[-1] = replace(self.drivers[-1], end=end, reason=reason)
        if self.drivers and kind != "extend":  # which the next driver writes before its own
            self.ended = max(self.ended, time)
            if record.get("node"):
                self.nodes.add(word(record, "node"))

    def close(self) -> None:
        """The end of a driver: what it collected to no end, and how long it lasted."""
        if self.collecting:  # it was cut off, or is under way
            iteration, end = self.collecting[-1].iteration, max(bar.end for bar in self.collecting)
            self._begin_work(min(bar.start for bar in self.collecting), iteration)
            self.stages.append(Bar(min(self.cursor, end), end, "collect", "collect", iteration))
        self._collected()
        if self.drivers:
            self.drivers[-1] = replace(self.drivers[-1], ended=self.ended, nodes=max(1, len(self.nodes)))

    def _collected(self) -> None:
        """The ranks of a collect that is over."""
        typical = statistics.median(bar.seconds for bar in self.collecting) if self.collecting else 0.0
        for bar in self.collecting:
            slow = len(self.collecting) >= _LEAST_RANKS and bar.seconds > STRAGGLES * typical
            self.ranks.append(replace(bar, kind="straggler") if slow else bar)
        self.collecting = []

    def _bar(self, record: Record, kind: str, end: float) -> Bar:
        iteration, rows = int(at_least(record, "iteration")), int(at_least(record, "rows"))
        who = word(record, "environment") or word(record, "stage")
        return Bar(end - at_least(record, "seconds"), end, kind, who, iteration, word(record, "node"), rows)

    def _failed(self, bar: Bar) -> None:
        in_collect = bar.who not in ("merge", "update", "check")
        if in_collect:
            self._begin_work(bar.start, bar.iteration)
        (self.ranks if in_collect else self.stages).append(bar)

    def _stage(self, record: Record, time: float) -> None:
        bar = self._bar(record, word(record, "stage"), time)
        if bar.kind == "collect":
            first = min((rank.start for rank in self.collecting), default=self.cursor)
            self._begin_work(first, bar.iteration)
            self._collected()
        self.stages.append(replace(bar, start=min(self.cursor, time)))  # its own seconds, and what it took to publish
        self.cursor, self.idle = max(self.cursor, time), False

    def _begin_work(self, time: float, iteration: int) -> None:
        """What went before the first rank of a collect."""
        if time > self.cursor:
            kind = "starting" if self.idle else "between"
            self.stages.append(Bar(self.cursor, time, kind, kind, iteration))
            self.cursor = time
        self.idle = False


def _with_jobs(drivers: Sequence[Driver], jobs: Sequence[JobRecord]) -> tuple[list[Driver], list[Bar]]:
    """The drivers with what is known of their jobs, and the bars of the jobs' waiting."""
    submitted = {job.job: job for job in jobs if job.job}
    last = max((driver.ended for driver in drivers), default=0.0)
    done, queue, seen = [], [], set()
    for driver in drivers:
        job = submitted.get(driver.job) if driver.job else None
        if job:
            driver = replace(driver, nodes=max(1, job.nodes))
        if job and driver.job not in seen:
            seen.add(driver.job)
            driver = replace(driver, submitted=job.time)
            queue.append(Bar(min(job.time, driver.began), driver.began, "queue", driver.job))
        done.append(driver)
    for job in jobs:  # those that have not begun, or had nothing left to do
        if job.job not in seen:
            queue.append(Bar(job.time, max(last, job.time), "queue", job.job or "not numbered"))
    return done, sorted(queue, key=lambda bar: bar.start)
