"""Following a run from its files, with a rare question to Slurm while no driver lives."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rose_hpc import ownership
from rose_hpc.journal import decode
from rose_hpc.progress import Progress
from rose_hpc.rundir import RunDir
from rose_hpc.slurm import view
from rose_hpc.slurm.queue import NOT_ASKED, Queue, ask
from rose_hpc.slurm.records import JobRecord, read_records

if TYPE_CHECKING:
    from rose_hpc.session import Observer

#: Slurm is asked no more often than this, however many ask us
ASK_INTERVAL_S = 60.0
_POLL_S = 0.5
#: of a long run, what was done before the last so many iterations is not told again
_TOLD = 10


class Look:
    """How a run stands, looked at again and again: Slurm's answers are each good for :data:`ASK_INTERVAL_S`."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.queue: Queue = NOT_ASKED
        self._asked = -ASK_INTERVAL_S

    def __call__(self, progress: Progress, jobs: Sequence[JobRecord]) -> view.Verdict:
        """The run's state, ``pending`` also while Slurm's last answer is older than a submission and says nothing.

        Args:
            progress: of its journal.
            jobs: what was submitted for it.
        """
        lives = progress.end is None and ownership.owner_lives(self.run)
        asks = not lives and view.is_open(progress, jobs)
        if asks and time.monotonic() - self._asked >= ASK_INTERVAL_S:
            self.queue = ask(jobs)
            self._asked = time.monotonic()
        verdict = view.decide(progress, lives, jobs, self.queue if asks else NOT_ASKED)
        newest = max((record.time for record in jobs), default=0.0)
        if asks and not self.queue.error and self.queue.asked_at <= newest and verdict.state != "running":
            return view.Verdict("pending")
        return verdict


class Tail:
    """The records of a journal that somebody else writes, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Those that came since the last call; a line that is not whole yet comes later."""
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            for line in file:
                try:
                    record = decode(line.removesuffix(b"\n"))
                except ValueError:  # torn: the next driver cuts it off, and appends in its place
                    return
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield record


class Follow:
    """The records of a run, or of one of its learners, as an observer is told of them.

    Args:
        run: the run.
        observer: told of every record, as the driver's own observers are.
    """

    def __init__(self, run: RunDir, observer: Observer) -> None:
        self.run = run
        self.observer = observer
        self.progress = Progress()
        self._tail = Tail(run.journal)
        self._begun: set[tuple[int, str]] = set()

    def tell(self) -> None:
        """What is new."""
        last: deque[dict[str, Any]] = deque()  # not applied yet: it is not known whether they will be told
        iterations = 0
        for record in self._tail.new():
            last.append(record)
            iterations += record["kind"] == "checkpoint"
            while iterations > _TOLD:
                quiet = last.popleft()
                self.progress.apply(quiet)
                iterations -= quiet["kind"] == "checkpoint"
        for record in last:
            self.progress.apply(record)
            self.observer.recorded(record, self.progress)
        self._tell_begun()

    def _tell_begun(self) -> None:
        """A rank that has a log and no record runs."""
        iteration = self.progress.iteration
        if self.progress.stage != "collect":
            return
        for name in self.progress.run.get("environments", ()):
            known = (iteration, name) in self._begun or name in self.progress.ranks
            if not known and self.run.log(iteration, "collect", name).exists():
                self._begun.add((iteration, name))
                self.observer.started(iteration, "collect", name)


class Watch:
    """One person's look at a run, from its files.

    Args:
        run: the run.
        observer: told of every record, as the driver's own observers are.
        say: told what Slurm does with the run's jobs.
    """

    def __init__(self, run: RunDir, observer: Observer, say: Callable[[str], None]) -> None:
        self.run = run
        self._whole = Follow(run, observer)
        self._learners: dict[int, Follow] = {}
        self._say = say
        self._said = ""
        self._look = Look(run)

    def follow(self) -> view.Verdict:
        """Until the run ends, or nothing of it is alive or queued; how it stands then."""
        while True:
            self._tell_learners()
            self._whole.tell()
            jobs = read_records(self.run)
            verdict = self._look(self._whole.progress, jobs)
            if verdict.state not in ("running", "pending"):
                self._tell_learners()  # what was written in between, and all of a run that had ended before
                return verdict
            if verdict.state == "pending":
                self._tell_queue(verdict, jobs)
            time.sleep(_POLL_S)

    def _tell_learners(self) -> None:
        known = self._whole.progress.run.get("learners", ())
        for number in range(len(known)):
            run = self.run.learner(number)
            if number not in self._learners and run.journal.exists():
                observer = self._whole.observer.learner(str(known[number]["name"]))
                self._learners[number] = Follow(run, observer)
        for learner in self._learners.values():
            learner.tell()

    def _tell_queue(self, verdict: view.Verdict, jobs: Sequence[JobRecord]) -> None:
        facts = view.job_facts(jobs, self._look.queue)
        alive = [each for each in facts if each["state"] in ("PENDING", "CONFIGURING", "RUNNING")]
        text = verdict.note or "; ".join(f"job {view.describe_job(each)}" for each in alive)
        if text and text != self._said:
            self._said = text
            self._say(text)
