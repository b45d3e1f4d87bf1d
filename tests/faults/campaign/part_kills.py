"""SIGKILL at random moments: the driver, one of its processes, its whole group; up to six times in a row."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cells import Cell, Part
from tiny import Tiny
from torture import Torture, Trial
from zygote import Driver

LONG, SHORT = 300, 20
TRAININGS = (
    Tiny("config", window=2),
    Tiny("config", environments=3, policies=1),
    Tiny("commands"),
    Tiny("config", shards=True),
    Tiny("functions"),
    Tiny("config", iterations=2, learners=2),
    Tiny("named", window=2),
    Tiny("functions", iterations=2, environments=1, learners=3),
    Tiny("named", iterations=2, learners=2),
)


def strike(trial: Trial, driver: Driver, rng: random.Random) -> None:
    """Wait a random while, and kill something of the run."""
    end = time.monotonic() + rng.random() * rng.choice((0.3, 2.0, 4.0))
    while time.monotonic() < end and driver.poll() is None:
        time.sleep(0.002)
    what = rng.choice(("driver", "driver", "process", "process", "group"))
    if what == "process" and (there := trial.processes()):
        with suppress(ProcessLookupError):
            os.kill(rng.choice(there), signal.SIGKILL)
        return
    driver.kill(group=what == "group")


def cell(shared: Torture, number: int, most: int) -> list[str]:
    """One run that is struck one to ``most`` times, and then left alone."""
    rng = random.Random(number)
    with shared.trial(TRAININGS[number % len(TRAININGS)]) as trial:
        for _ in range(rng.randint(1, most)):
            driver = trial.start()
            strike(trial, driver, rng)
            if trial.settle(driver) in (0, 3):
                break
        trial.finish()
        return trial.violations


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """Numbered ones."""
    with Torture(folder) as shared:
        most = 6 if long else 3
        yield ((str(k), lambda k=k: cell(shared, k, most)) for k in range(LONG if long else SHORT))


PART = Part(
    "kills",
    "SIGKILL of the driver, a random process of it, or its whole group at random moments, up to 6 in a row; "
    "configurations and Python programs",
    cells,
)
