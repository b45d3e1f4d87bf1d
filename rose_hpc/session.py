"""A run as its driver holds it: directory, lock, journal and progress, opened together and kept in step."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from rose_hpc import __version__, failpoints, publishing
from rose_hpc.checkpoint import FORMAT, check, check_known
from rose_hpc.errors import OwnedError, RunError
from rose_hpc.journal import SYNC_INTERVAL_S, Bookmark, Journal
from rose_hpc.ownership import HEARTBEAT_S, Ownership
from rose_hpc.progress import Progress
from rose_hpc.refusals import named
from rose_hpc.rundir import RunDir
from rose_hpc.write_behind import WriteBehind

log = logging.getLogger(__name__)

#: of a file on a command line, only one of at most this size is taken for a script
_SCRIPT_BYTES = 16 * 1024 * 1024
#: what a run says of itself once and for all
_KEPT = ("name", "environments", "seed", "learners", "learner", "parameters")
#: it is looked so often, while records are written, whose the run is: a driver that was suspended sees a longer time
_OWNED_S = 0.1


class Observer(Protocol):
    """Who watches a run: the live view, the plain lines, trackers."""

    def started(self, iteration: int, stage: str, environment: str) -> None:
        """A rank or stage began."""

    def recorded(self, record: Mapping[str, Any], progress: Progress) -> None:
        """A record was written."""

    def warned(self, text: str) -> None:
        """Something people should know, which ends nothing."""

    def learner(self, label: str) -> Observer:
        """Who watches one of the run's learners."""


class Session:
    """One driver's time with a run.

    Args:
        run: the run directory; it exists, and has a journal.
        observers: told of every record.
        within: the session of the run of which this is a learner, which owns both, and whose heartbeat is for both.
        known: the progress of what was read of the journal before, and how far: long ones are not read twice.

    Raises:
        OwnedError: when another driver lives.
        JournalError: when the journal is damaged.
    """

    def __init__(
        self,
        run: RunDir,
        observers: Sequence[Observer] = (),
        *,
        within: Session | None = None,
        known: tuple[Progress, Bookmark] | None = None,
    ) -> None:
        self.run = run
        self.observers = list(observers)
        self.ownership: Ownership = Ownership(run) if within is None else within.ownership
        self._owner: Session = within or self
        self.progress, mark = known or (Progress(), Bookmark())
        try:
            self.journal = Journal(run.journal, self.progress.apply, mark)
            failpoints.hit("session-read")
            check_known(run, self.progress)
        except BaseException:
            if within is None:
                self.ownership.release()
            raise
        self._behind = WriteBehind(self.journal, self.check_owned)
        self._lost: OwnedError | None = None
        self._owned_at = -math.inf
        self._words: set[tuple[str, str]] = set()
        self._checked: set[str] = set()
        self._closing = threading.Event()
        self._journals = [self.journal]  # its own, and its learners'
        self._beating = threading.Thread(target=self._beat, name="rose_hpc heartbeat", daemon=True)
        if within is None:
            self.ownership.follow(max((int(job["epoch"]) for job in self.progress.jobs), default=-1))
            self._beating.start()
        else:
            within._journals.append(self.journal)

    def _beat(self) -> None:
        # A thread, because a program may keep the event loop busy for longer than a heartbeat may be late.
        waited, said = 0.0, ""
        while not self._closing.wait(SYNC_INTERVAL_S):
            waited += SYNC_INTERVAL_S
            try:
                if waited >= HEARTBEAT_S:
                    waited = 0.0
                    self.ownership.beat()  # first: it lives, whatever its disk does
                for journal in tuple(self._journals):
                    journal.sync()
            except OwnedError as error:
                self._lost = error  # what this driver would still record is refused
                return
            except (OSError, RunError) as error:  # the next record tries again, and ends the run where that is in vain
                if str(error) != said:
                    said = str(error)
                    log.warning("the run's files cannot be brought up to date: %s", error)

    def record(self, kind: str, **fields: Any) -> None:
        """Append a record, and let everyone know.

        Raises:
            OwnedError: when another driver has taken the run over.
        """
        self.record_all(kind, [fields])

    def record_all(self, kind: str, those: Iterable[Mapping[str, Any]]) -> None:
        """Append records of one kind, all of them or none, and let everyone know.

        Raises:
            OwnedError: when another driver has taken the run over.
        """
        self.check_owned()
        self._take(self._behind.append_all(kind, those))

    def record_now(self, kind: str, **fields: Any) -> None:
        """Append a record that speaks of no file, and have it on the disk, whatever is still to be done for others.

        Raises:
            OwnedError, RunError: as :meth:`record` and :meth:`rose_hpc.journal.Journal.sync`.
        """
        self.check_owned()
        self._take(self.journal.append_all(kind, [fields]))
        self.journal.sync()

    def _take(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            self.progress.apply(record)
            for observer in self.observers:
                observer.recorded(record, self.progress)

    def first(self, work: Callable[[], None]) -> None:
        """Have a thread do what must be done before anything that is recorded from now on is written."""
        self._behind.do(work)

    async def settle(self) -> None:
        """Wait until all that was recorded is written, and what was to be done before it is done.

        Raises:
            RunError, OwnedError: it could not be: the records that were to follow are not written, either.
        """
        await self._behind.settle()

    def forgive(self) -> None:
        """If something could not be done or written, that has been told: what is recorded from now on is written."""
        self._behind.forgive()

    def forget_unwritten(self) -> None:
        """What could not be done or written is not done: what is recorded from now on is written at once."""
        self._behind.forget()

    def check_owned(self) -> None:
        """Make sure that the run is still ours, before anything is published or recorded.

        Raises:
            OwnedError: when another driver has taken the run over.
        """
        if self._owner._lost is not None:
            raise self._owner._lost
        now = time.monotonic()
        if now - self._owned_at > _OWNED_S:
            self.ownership.check()
            self._owned_at = now

    def started(self, iteration: int, stage: str, environment: str = "") -> None:
        """Tell the observers that something began."""
        for observer in self.observers:
            observer.started(iteration, stage, environment)

    def warn(self, text: str) -> None:
        """Tell the observers; where there are none, the log."""
        if not self.observers:
            log.warning("%s", text)
        for observer in self.observers:
            observer.warned(text)

    def begin(self, facts: Mapping[str, Any], changes: Sequence[str] = (), engine: str | None = None) -> None:
        """The first records of this driver: the run, if it is new, and the driver itself.

        Args:
            facts: the run's.
            changes: to its configuration, ``key=value``, since it was last driven.
            engine: what the driver runs its work on, if it is known.

        Raises:
            RunError: when this is another run than ``facts`` describe.
        """
        check(self.run, self.progress, facts["window"])
        known = self.progress.run
        if not known:
            self.record("run", version=__version__, format=FORMAT, **facts)
            self.journal.sync()  # so that no crash leaves iterations of a run that nobody knows
            failpoints.hit("session-run-recorded")
        elif changed := [key for key in _KEPT if known.get(key) != facts.get(key)]:
            key = changed[0]
            raise RunError(
                f"{self.run.path} is a run with {key} {known.get(key)}, not {facts.get(key)}",
                hint="bring that back, or start a new run",
            )
        else:
            ours = ("argv", "interpreter", "cwd") if facts["source"] == "config" else ()  # of `resume`, not of the run
            differences = {key: value for key, value in facts.items() if known.get(key) != value and key not in ours}
            if differences or changes:
                self.record("extend", changes=list(changes), **differences)
                failpoints.hit("session-extended")
        owner = {key: self.ownership._facts[key] for key in ("epoch", "host", "pid", "job")}
        if (restart := os.environ.get("SLURM_RESTART_COUNT", "0")) != "0":  # the same job, requeued
            owner["restart"] = int(restart)
        self.record("job", version=__version__, python=sys.version.split()[0], engine=engine, **owner)
        failpoints.hit("session-begun")

    def note_file(self, path: Path) -> bool:
        """Note the digest of a file the first time; whether it is another now."""
        known = self.progress.scripts.get(str(path))
        if known is None:
            self.record("scripts", digests={str(path): _digest(path)})
        return known is not None and known != _digest(path)

    def check_scripts(self, argv: Sequence[str], cwd: Path) -> None:
        """Note the digests of the files on a command line; warn of those that changed since they were last used."""
        folder = str(cwd)  # a Path takes its time to be found in a set
        if not (words := [word for word in argv if (folder, word) not in self._words]):
            return  # a thousand environments have one script
        self._words.update((folder, word) for word in words)
        digests = {}
        for word in words:
            path = Path(os.path.normpath(cwd / word)) if word and len(word) < 4096 else None
            if path is None or str(path) in self._checked or path == Path(sys.executable) or "\0" in word:
                continue
            self._checked.add(str(path))
            with suppress(OSError):  # too long for a file's name, or not ours to read: no script of this run
                if path.suffix and path.is_file() and path.stat().st_size <= _SCRIPT_BYTES:
                    digests[str(path)] = _digest(path)
        known = self.progress.scripts
        if changed := [path for path, digest in digests.items() if known.get(path, digest) != digest]:
            since = (
                f"since iteration {self.progress.iteration} was begun"
                if self.progress.stages
                else "since it was last used"
            )
            self.warn(f"{', '.join(changed)} changed {since}: from here on the run uses it as it is now")
        if new := {path: digest for path, digest in digests.items() if known.get(path) != digest}:
            self.record("scripts", digests=new)
            failpoints.hit("scripts-noted")

    @property
    def closed(self) -> bool:
        """Whether the run was let go of."""
        return self._closing.is_set()

    def close(self) -> None:
        """Let go of the run; idempotent."""
        if not self._closing.is_set():
            try:
                self._behind.finish()  # where a program's event loop has ended before its run
            except Exception as error:  # noqa: BLE001 - whatever it was, the run is let go of
                self._behind.forget()
                log.warning("what was done last has no record, and is done again by whoever goes on: %s", error)
            self._closing.set()
            if self._owner is not self:
                self._owner._journals.remove(self.journal)
                self.journal.close()
                return
            self._beating.join()
            failpoints.hit("session-closing")
            try:
                self.journal.close()
            finally:
                self.ownership.release()


def _digest(path: Path) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def clear_scratch(run: RunDir) -> None:
    """Remove what earlier drivers left unpublished. Only the owner may.

    Raises:
        RunError: when the run directory is not to be had; single files that cannot be removed stay.
    """
    with named(RunError, f"cannot clear {run.scratch}"):
        for folder in (run.scratch, run.logs):
            folder.mkdir(exist_ok=True)
        left = (*run.scratch.iterdir(), *run.path.glob(".*.tmp"))  # the latter of a command that was killed
    for path in left:
        with suppress(RunError):  # a rank that outlived its driver may still write there; no name of ours is the same
            publishing.remove(path)
            failpoints.hit("scratch-removed")
