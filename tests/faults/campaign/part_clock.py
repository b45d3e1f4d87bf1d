"""The clock of the machine is set back or forward by an hour under a driver, in every stage."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torture
from cells import Cell, Part
from tiny import Tiny
from torture import ENDED, Torture, wait_until

HOUR = 3600
#: a point in the middle of every stage, in the driver; and one in a supervisor while an environment runs
STAGES = {
    "starting": "session-begun",
    "collect": "rank-answered",
    "an environment": "command-started",
    "merge": "merge-answered",
    "update": "update-answered",
    "check": "check-answered",
    "closing": "checkpoint-recorded",
}
TRAININGS = {"config": Tiny("config", iterations=2), "foreign": Tiny("foreign", iterations=2)}


def build(folder: Path) -> Path:
    """The library that shifts the clock of those who load it."""
    library = folder / "shift_clock.so"
    source = Path(__file__).with_name("shift_clock.c")
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return library


def cell(shared: Torture, clock: Path, form: str, stage: str, hours: int) -> list[str]:
    """Hold a run in a stage, set the clock, let it go on; nobody takes the run, and nothing takes an hour."""
    clock.write_text("0")
    tiny = TRAININGS[form]
    shared.undisturbed(tiny)
    with shared.trial(tiny) as trial:
        mark = trial.folder / "held"
        driver = trial.start(**torture.dying(STAGES[stage], 1, mark, "STOP"))
        if not wait_until(lambda: mark.exists() or driver.poll() is not None, 60) or not mark.exists():
            raise RuntimeError(f"the driver did not come to {STAGES[stage]}: {driver.stderr[-300:]}")
        clock.write_text(str(hours * HOUR))
        if driver.poll() is None:
            second = trial.start("resume", trial.run)
            if trial.settle_one(second) != 1 or "is driven by" not in second.stderr:
                trial.violations.append(f"a second driver was not refused: {second.stderr[-300:]}")
        for pid in (driver.pid, *trial.processes()):
            os.kill(pid, signal.SIGCONT)
        if (code := trial.settle(driver)) not in ENDED:
            trial.violations.append(f"exit {code}: {driver.stderr[-300:]}")
        trial.compare()
        records = [json.loads(line) for line in (trial.run / "journal.jsonl").read_text().splitlines()]
        if long := [r for r in records if not 0 <= r.get("seconds", 0) < HOUR / 2]:
            trial.violations.append(f"a stage took {long[0]['seconds']} s")
        return trial.violations


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """Every stage, forward and back; the short form without the foreign engine, by turns forward or back."""
    clock = folder / "clock"
    clock.write_text("0")
    with Torture(folder, LD_PRELOAD=str(build(folder)), SHIFT_CLOCK=str(clock)) as shared:

        def each() -> Iterator[Cell]:
            every = list(itertools.product(TRAININGS, STAGES, (1, -1)))
            turns = [("config", stage, (-1) ** number) for number, stage in enumerate(STAGES)]
            for form, stage, hours in every if long else turns:
                name = f"{form}, {stage}, {hours:+} h"
                yield name, lambda form=form, stage=stage, hours=hours: cell(shared, clock, form, stage, hours)

        yield each()


PART = Part("clock", "the clock is set back and forward by an hour, in each stage", cells)
