"""Trials of a run: start drivers, let something happen to them, go on until the run ends, and hold it to I1-I7."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import invariants
from tiny import Tiny
from zygote import Driver, Zygote

#: a start that takes longer hangs (I5)
PATIENCE_S = 120.0
#: exit codes of a run that has ended: converged, or max_iterations
ENDED = (0, 3)
_MOST_STARTS = 12


class Torture:
    """What trials share: the process that forks drivers, the projects, and what the undisturbed runs came to.

    Args:
        folder: an empty one, for everything.
        env: of all drivers.
    """

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.env = env
        self.zygote = Zygote(**env)
        self._projects: dict[Tiny, Path] = {}
        self._undisturbed: dict[tuple[Tiny, int | None], dict[str, Any]] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> Torture:
        return self

    def __exit__(self, *_: object) -> None:
        self.zygote.close()

    def project(self, tiny: Tiny) -> Path:
        """The configuration or program of a training."""
        if tiny not in self._projects:
            self._projects[tiny] = tiny.write(self.folder / f"it's project {len(self._projects)}")
        return self._projects[tiny]

    def trial(self, tiny: Tiny) -> Trial:
        """A new run of it."""
        return Trial(self, tiny, self.folder / f"trial {next(self._numbers)}")

    def undisturbed(self, tiny: Tiny) -> dict[str, Any]:
        """The essence of the run that nobody disturbs."""
        if (tiny, None) not in self._undisturbed:
            with self.trial(tiny) as trial:
                driver = trial.start()
                code = driver.wait(PATIENCE_S)
                if code not in ENDED:
                    raise RuntimeError(f"the undisturbed run ended with {code}: {driver.stderr}")
                self._undisturbed[tiny, None] = invariants.essence(trial.run)
        return self._undisturbed[tiny, None]


class Trial:
    """One run, and what was seen of it.

    Attributes:
        run: the run directory; it need not exist yet.
        violations: what was found, in words.
        starts: how many drivers it has had.
        harmed: experience that the trial itself has cut, and its size since then.
    """

    def __init__(self, torture: Torture, tiny: Tiny, folder: Path) -> None:
        self.torture = torture
        self.tiny = tiny
        self.folder = folder
        self.run = folder / "the run"
        self.violations: list[str] = []
        self.starts = 0
        self.harmed: dict[Path, int] = {}
        self.marker = f"TORTURE_TRIAL={os.getpid()}-{folder.name}."
        self._records: list[dict[str, Any]] = []
        self._drivers: list[Driver] = []
        folder.mkdir(parents=True)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *error: object) -> None:
        for driver in self._drivers:
            driver.kill(signal.SIGCONT, group=True)
            driver.kill(group=True)
            driver.wait(10)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not self.violations and error[0] is None:
            shutil.rmtree(self.folder)

    def processes(self) -> list[int]:
        """Everything its drivers have started and not ended."""
        return invariants.processes(self.marker)

    def start(self, *arguments: object, **env: str) -> Driver:
        """Start a driver as a user would: ``run`` the first time, then ``resume``; a program is run again.

        Args:
            arguments: of ``rose-hpc`` instead.
            env: of this driver alone.
        """
        self.starts += 1
        project = self.torture.project(self.tiny)
        key, _, value = self.marker.partition("=")
        env = {key: value, "ROSE_HPC_RUNS": str(self.folder), **env}
        program = ""
        if arguments:
            argv: tuple[object, ...] = arguments
        elif not self.tiny.is_config:
            program, argv = str(project), ()
            env["ROSE_HPC_RUN"] = str(self.run)
        elif (self.run / "journal.jsonl").exists():
            argv = ("resume", self.run)
        else:
            argv = ("run", project, "--run-dir", self.run)
        out = self.folder / f"start {self.starts}"
        driver = self.torture.zygote.start(argv, self.folder, out, env, program)
        self._drivers.append(driver)
        return driver

    def look(self) -> None:
        """Hold what is committed to I1."""
        found, self._records = invariants.committed(self.run, self._records, self.harmed)
        self.violations += found

    def settle(self, driver: Driver) -> int:
        """See the only driver end, by itself or killed, and all it started; its exit code."""
        code = self.settle_one(driver)
        self.see_nothing_left()
        self.look()
        return code

    def settle_one(self, driver: Driver) -> int:
        """See a driver end; its exit code."""
        try:
            code = driver.wait(PATIENCE_S)
        except TimeoutError as error:
            self.violations.append(f"I5: {error}: {driver.stderr[-300:]}")
            driver.kill(group=True)
            code = driver.wait(10)
        if self.tiny.is_config:
            self.violations += invariants.complaint(code, driver.stderr)
        return code

    def see_nothing_left(self) -> None:
        """I7, once all drivers have ended."""
        if not wait_until(lambda: not self.processes(), 20):
            self.violations.append(f"I7: {len(self.processes())} processes outlived their driver")

    def finish(self, *arguments: object, **env: str) -> None:
        """Go on (with these arguments of ``rose-hpc``, if any) until the run ends; compare it with the undisturbed."""
        for _ in range(_MOST_STARTS):
            driver = self.start(*arguments, **env)
            if (code := self.settle(driver)) in ENDED:
                break
        else:
            self.violations.append(f"the run does not end: exit {code}, {driver.stderr[-300:]}")
            return
        self.compare()

    def compare(self, *, tidy: bool = True) -> None:
        """Hold a run that has ended to I1, I3, I4 and, if it is ``tidy``, I7."""
        undisturbed = self.torture.undisturbed(self.tiny)
        self.violations += invariants.differences(invariants.essence(self.run), undisturbed)
        if tidy:
            self.violations += invariants.left_over(self.run)


def points(trial: Trial, *arguments: object, **env: str) -> Counter[str]:
    """The failpoints that one start of a driver comes to, with how often."""
    noted = trial.folder / "points"
    driver = trial.start(*arguments, **env, ROSE_HPC_FAILPOINT="?", ROSE_HPC_FAILPOINT_MARK=str(noted))
    trial.settle(driver)
    return Counter(noted.read_text().split())


def dying(point: str, count: int, mark: Path, kind: str = "KILL") -> Mapping[str, str]:
    """The environment of a driver one of whose processes dies at ``point``."""
    return {"ROSE_HPC_FAILPOINT": f"{point}:{count}:{kind}", "ROSE_HPC_FAILPOINT_MARK": str(mark)}


def die_at(trial: Trial, point: str, count: int = 1, *arguments: object, **env: str) -> bool:
    """Start a driver one of whose processes dies at a point; whether it came there."""
    mark = trial.folder / f"died in start {trial.starts + 1}"  # where one is there already, nobody dies
    trial.settle(trial.start(*arguments, **env, **dying(point, count, mark)))
    return mark.exists()


def wait_until(what: Callable[[], Any], seconds: float) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
