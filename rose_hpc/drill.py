"""The drill: a short training is killed in every way that happens on a cluster, and compared with an undisturbed one.

It runs where the training will run, with the user's own scripts. Two undisturbed runs come first: where they differ,
the scripts are not deterministic given their seed, and nothing can be said about equality; that nothing committed is
lost is held all the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rose_hpc.blows import BLOWS, VARIABLE, Blow, Processes
from rose_hpc.errors import EngineError, TaskError
from rose_hpc.essence import damages, differences, essence
from rose_hpc.journal import read_journal
from rose_hpc.progress import STAGES, Progress
from rose_hpc.report.words import count
from rose_hpc.rundir import RunDir

#: exit codes of a run that is at its end
_ENDED = (0, 3)
#: the processes of a killed driver must be gone by then
_GONE_S = 30.0
_LOOK_S = 0.02

Say = Callable[[str], None]


@dataclass(frozen=True)
class Happened:
    """A blow, and what came of it.

    Attributes:
        blow: its name.
        iteration, stage: when.
        exit_code: of the driver; minus the signal's number when a signal ended it; None: it went on.
        seconds: until it had ended.
        left: how many of its processes were still there half a minute later.
    """

    blow: str
    iteration: int
    stage: str
    exit_code: int | None
    seconds: float
    left: int = 0


@dataclass
class Report:
    """What a drill found.

    Attributes:
        folder: where its runs are.
        engine: what they ran on.
        iterations: how many each.
        nondeterministic: where two undisturbed runs differ; then the disturbed one is not compared.
        happened: the blows.
        lost: what was lost or altered, in words.
    """

    folder: str
    engine: str
    iterations: int
    nondeterministic: list[str] = field(default_factory=list)
    happened: list[Happened] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was lost."""
        return not self.lost

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "ok": self.ok}


class Drill:
    """One drill.

    Args:
        config: the configuration's file, as given to ``run``.
        folder: an empty one for its runs.
        iterations: of each run.
        options: further words of ``rose-hpc run`` (``--set``, ``--engine``).
        timeout_s: that any driver may take.
        say: told what happens.
    """

    def __init__(
        self, config: Path, folder: Path, iterations: int, options: Sequence[str], timeout_s: float, say: Say
    ) -> None:
        self.config = config
        self.folder = folder
        self.iterations = iterations
        self.options = options
        self.timeout_s = timeout_s
        self.say = say

    def run(self, engine: str) -> Report:
        """Carry it out.

        Raises:
            TaskError: the training does not even run undisturbed; the message has its last words.
            EngineError: a driver hangs.
        """
        report = Report(str(self.folder), engine, self.iterations)
        first, second = self._undisturbed("undisturbed-1"), self._undisturbed("undisturbed-2")
        report.nondeterministic = _differences(second, first)
        if report.nondeterministic:
            self.say(f"two undisturbed runs differ ({report.nondeterministic[0]}): equality cannot be asked for")
        run = self._disturbed(report)
        report.lost += [_whose(part) + each for part in _parts(run) for each in damages(part)]
        # where two undisturbed runs differ, what came of it is another each time; that everything was done is not
        report.lost += _differences(run, first, closely=not report.nondeterministic)
        return report

    def _undisturbed(self, name: str) -> RunDir:
        run = RunDir(self.folder / name)
        began = time.monotonic()
        processes = self._start(run)
        if (code := self._wait(processes)) not in _ENDED:
            words = (self.folder / f"{name}.log").read_text(errors="replace").strip().rpartition("\n")[2]
            raise TaskError(
                f"the undisturbed run ended with exit code {code}: {words.removeprefix('rose-hpc: error: ')}",
                hint=f"see {self.folder / name}.log; the drill needs a training that runs",
            )
        self.say(f"{name}: {count(self.iterations, 'iteration')} in {time.monotonic() - began:.1f} s")
        return run

    def _disturbed(self, report: Report) -> RunDir:
        run = RunDir(self.folder / "disturbed")
        processes: Processes | None = None
        for blow in BLOWS:
            if (processes := self._come_to(run, blow.stage, processes)) is None:
                self.say(f"the run was at its end before: {blow.name}")
                break
            happened = self._strike(run, blow, processes)
            report.happened.append(happened)
            came = "the driver went on" if happened.exit_code is None else f"exit {happened.exit_code}"
            self.say(
                f"iteration {happened.iteration}, {happened.stage}: {blow.name} ({came}, {happened.seconds:.1f} s)"
            )
            if happened.left:
                report.lost.append(f"{happened.left} processes outlived the driver: {blow.name}")
            if happened.exit_code is not None:
                processes = None
        for _ in range(3):
            code = self._wait(processes or self._start(run))
            processes = None
            if code in _ENDED:
                return run
        report.lost.append(f"the run does not end any more: exit code {code}; see {run.path}.log")
        return run

    def _come_to(self, run: RunDir, stage: str, processes: Processes | None) -> Processes | None:
        """Wait until a driver works at that stage, or is past it; None when the run is at its end before.

        Args:
            run: the run.
            stage: which.
            processes: of the driver under way; None: there is none. One that failed is followed by the next.
        """
        end = time.monotonic() + self.timeout_s
        processes = processes or self._start(run)
        first = _position(run, stage)
        while not _is_at(run, first, processes):
            if (code := processes.driver.poll()) is not None:
                if code in _ENDED:
                    return None
                processes = self._start(run)
            if time.monotonic() > end:
                self._end(processes)
                raise EngineError(f"a driver did not come to {stage} in {self.timeout_s:.0f} s", hint=self._hint)
            time.sleep(_LOOK_S)
        return processes

    def _strike(self, run: RunDir, blow: Blow, processes: Processes) -> Happened:
        """Strike, and see the driver end or, where it may, go on."""
        run = _watched(run)
        known, iteration = len(read_journal(run.journal)), Progress.of(read_journal(run.journal)).iteration
        began = time.monotonic()
        name = blow.name
        if not blow.strike(processes):
            name = f"{name} (none of it on this host: the driver instead)"
            processes.signal(signal.SIGKILL)
        while processes.driver.poll() is None and time.monotonic() - began < self.timeout_s:
            if blow.survivable and len(read_journal(run.journal)) > known:
                return Happened(name, iteration, blow.stage, None, _since(began))
            time.sleep(_LOOK_S)
        code = self._wait(processes)
        return Happened(name, iteration, blow.stage, code, _since(began), self._left(processes))

    def _start(self, run: RunDir) -> Processes:
        token = uuid.uuid4().hex
        argv = [sys.executable, "-P", "-m", "rose_hpc"]
        if run.journal.exists():
            engine = [w for k, w in enumerate(self.options) if "--engine" in (w, *self.options[max(0, k - 1) : k])]
            argv += ["resume", str(run.path), "--here", *engine]
        else:
            argv += ["run", str(self.config), "--run-dir", str(run.path), *self.options]
        with open(f"{run.path}.log", "ab") as log:
            driver = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, VARIABLE: token},
                start_new_session=True,
            )
        return Processes(driver, token)

    def _wait(self, processes: Processes) -> int:
        try:
            return processes.driver.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            self._end(processes)
            raise EngineError(f"a driver did not end in {self.timeout_s:.0f} s", hint=self._hint) from None

    def _end(self, processes: Processes) -> None:
        processes.kill(b"", only_one=False)
        with suppress(ProcessLookupError):
            processes.driver.kill()
        processes.driver.wait()

    def _left(self, processes: Processes) -> int:
        """How many processes of a driver that has ended are there for longer than they may be."""
        end = time.monotonic() + _GONE_S
        while (left := processes.all()) and time.monotonic() < end:
            time.sleep(_LOOK_S)
        return len(left)

    @property
    def _hint(self) -> str:
        return f"see {self.folder}/*.log"


def _parts(run: RunDir) -> list[RunDir]:
    """The learners of a run, or itself where it has none."""
    return run.learners or [run]


def _watched(run: RunDir) -> RunDir:
    """Whose stages say when to strike: of several learners the first, while the others work at whatever they do."""
    return _parts(run)[0]


def _whose(part: RunDir) -> str:
    return f"{part.name}: " if part.within is not None else ""


def _differences(ours: RunDir, others: RunDir, *, closely: bool = True) -> list[str]:
    """Where two runs part, learner by learner; not ``closely``: in what was done, whatever came of it."""
    found = []
    for mine, other in zip(_parts(ours), _parts(others), strict=True):
        own, theirs = essence(mine), essence(other)
        if not closely:
            own, theirs = dict.fromkeys(own), dict.fromkeys(theirs)
        found += [_whose(mine) + each for each in differences(own, theirs)]
    return found


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)


def _position(run: RunDir, stage: str) -> tuple[int, int]:
    """Where the next driver comes to ``stage`` for the first time."""
    run = _watched(run)
    progress = Progress.of(read_journal(run.journal)) if run.journal.exists() else Progress()
    wanted, now = STAGES.index(stage), STAGES.index(progress.stage or STAGES[-1])
    return progress.iteration + (now > wanted), wanted


def _is_at(run: RunDir, position: tuple[int, int], processes: Processes) -> bool:
    """Whether the driver under way works there, or is past it."""
    run = _watched(run)
    if not run.journal.exists():
        return False
    progress = Progress.of(read_journal(run.journal))
    if not progress.jobs or progress.jobs[-1]["pid"] != processes.driver.pid:
        return False
    now = progress.iteration, STAGES.index(progress.stage or STAGES[-1])
    working = now[1] > 0 or bool(progress.ranks) or bool(processes.all(b"ROSE_HPC_STAGE=collect"))
    return now > position or (now == position and working)
