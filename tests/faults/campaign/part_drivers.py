"""Two or three drivers for one run: one has it, the others say who; and one that slept while another took its run."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torture
from cells import Cell, Part
from tiny import Tiny
from torture import ENDED, Torture, Trial, wait_until
from zygote import Driver

LONG, SHORT = 300, 20
TRAININGS = (Tiny("config", window=2), Tiny("commands", iterations=2), Tiny("config", environments=3, policies=1))
#: a driver held here has not yet looked whether the run is still its own
HOLDS = ("rank-answered", "merge-answered", "update-answered", "check-answered", "iteration-done", "rank-prepared")
_OWNED = re.compile(r"is driven by process (\d+) on (\S+?)[,;]")


def elsewhere(node: str) -> dict[str, str]:
    """A driver on another machine, over a file system whose locks do not cross machines; its patience is short."""
    return {"TORTURE_NODE": node}


def race(trial: Trial, rng: random.Random) -> None:
    """Start drivers together on a stopped run; whoever has it may be killed, and is followed by the next."""
    torture.die_at(trial, rng.choice(("rank-recorded", "merge-recorded", "policy-published", "checkpoint-synced")))
    drivers = []
    for _ in range(rng.choice((2, 2, 3))):
        drivers.append(trial.start())
        time.sleep(rng.choice((0, 0, 0.01, 0.1)))
    if rng.random() < 0.3:
        time.sleep(rng.random())
        rng.choice(drivers).kill()
    for driver in drivers:
        code = trial.settle_one(driver)
        trial.violations += refusal(driver, drivers, code)
    trial.see_nothing_left()


def refusal(driver: Driver, others: list[Driver], code: int) -> list[str]:
    """A driver that did not get the run leaves with 1, and names one that did, and where it is."""
    if code in (*ENDED, -signal.SIGKILL):
        return []
    match = _OWNED.search(driver.stderr)
    if code != 1 or match is None:
        return [f"exit {code}: {driver.stderr[-300:]}"]
    pids = {str(other.pid) for other in others if other is not driver}
    return [] if match[1] in pids else [f"it names process {match[1]}, which is none of {sorted(pids)}"]


def asleep(trial: Trial, rng: random.Random) -> None:
    """A driver is suspended, another takes the run and ends it, and the first wakes up: it is refused."""
    point, mark = rng.choice(HOLDS), trial.folder / "held"
    sleeper = trial.start(**elsewhere("node1"), **torture.dying(point, 1 + rng.randrange(2), mark, "STOP"))
    if not wait_until(lambda: mark.exists() or sleeper.poll() is not None, 60) or not mark.exists():
        raise RuntimeError(f"the driver did not come to {point}: {sleeper.stderr[-300:]}")
    for _ in range(3):  # the first may have been refused by a heartbeat that it saw change just then
        follower = trial.start(**elsewhere("node2"))
        if trial.settle_one(follower) in ENDED:
            break
    before = trial.violations.copy()
    trial.compare()
    sleeper.kill(signal.SIGCONT)
    code = trial.settle_one(sleeper)
    if code != 1 or "is driven by process" not in sleeper.stderr:
        trial.violations.append(f"the one that slept ended with {code}: {sleeper.stderr[-300:]}")
    trial.see_nothing_left()
    if trial.violations == before:
        trial.look()
        trial.compare(tidy=False)  # what its ranks wrote is in scratch, for the next driver to clear


def cell(shared: Torture, number: int) -> list[str]:
    """A race, or one that sleeps."""
    rng = random.Random(number)
    with shared.trial(TRAININGS[number % len(TRAININGS)]) as trial:
        if number % 5 == 4:
            asleep(trial, rng)
        else:
            race(trial, rng)
            trial.finish()
        return trial.violations


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """Numbered ones."""
    with Torture(folder) as shared:
        yield ((str(k), lambda k=k: cell(shared, k)) for k in range(LONG if long else SHORT))


PART = Part(
    "drivers",
    "two or three drivers race for one run; one sleeps while another takes it over, without locks",
    cells,
)
