"""SIGKILL at every named failpoint, in whichever process comes to it; then the run goes on, and is compared."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torture
from cells import Cell, Part
from tiny import Tiny
from torture import ENDED, Torture, Trial

import rose_hpc

SEEDS = 20
Arguments = tuple[object, ...]


@dataclass(frozen=True)
class Scenario:
    """A start of a driver that comes to some points.

    Attributes:
        tiny: the training.
        before: what has happened to the run until then.
        arguments: of ``rose-hpc``; empty: as one goes on with the run.
    """

    tiny: Tiny
    before: Callable[[Trial], None] = lambda trial: None
    arguments: Callable[[Trial], Arguments] = lambda trial: ()


def killed_in_the_middle(trial: Trial) -> None:
    """Killed once before, its last record torn, a file of a rank left behind, and the owner's file lost."""
    torture.die_at(trial, "iteration-done")
    with open(trial.run / "journal.jsonl", "a") as journal:
        journal.write('{"seq":99,"kind":"check')
    (trial.run / "scratch" / "0000-collect-env_1-0.7.h5").write_text("half a sh")
    (trial.run / "owner.json").unlink()


def killed_with_a_policy_published(trial: Trial) -> None:
    """Killed when a policy has its name, and no record yet."""
    torture.die_at(trial, "policy-published")


def finished_early(trial: Trial) -> None:
    """At its end, which was set too early."""
    project = trial.torture.project(trial.tiny)
    driver = trial.start("run", project, "--run-dir", trial.run, "--max-iterations", trial.tiny.iterations - 1)
    if trial.settle(driver) not in ENDED:
        raise RuntimeError(driver.stderr)


def further(trial: Trial) -> Arguments:
    """How a finished run is extended."""
    return "resume", trial.run, "--max-iterations", trial.tiny.iterations


SCENARIOS = {
    "a configuration": Scenario(Tiny("config", window=2)),
    "retention": Scenario(Tiny("config", policies=1)),
    "commands of a program": Scenario(Tiny("commands", iterations=2)),
    "functions of a program": Scenario(Tiny("functions", iterations=2)),
    "a resumed run": Scenario(Tiny("config"), killed_in_the_middle),
    "a resumed program": Scenario(Tiny("commands", iterations=2), killed_in_the_middle),
    "a policy without a record": Scenario(Tiny("config", iterations=2), killed_with_a_policy_published),
    "an extended run": Scenario(Tiny("config", iterations=2), finished_early, further),
}


def names() -> list[str]:
    """Every failpoint of the code."""
    found: set[str] = set()
    for path in sorted(Path(rose_hpc.__file__).parent.rglob("*.py")):
        if path.name != "failpoints.py":
            found |= set(re.findall(r'failpoints\.hit\("([^"]*)"\)', path.read_text()))
    return sorted(found)


class Failpoints:
    """The part, with what every scenario comes to."""

    def __init__(self, shared: Torture) -> None:
        self.shared = shared
        self._counts: dict[str, Counter[str]] = {}

    def counts(self, scenario: str) -> Counter[str]:
        """How often a scenario comes to each point when nobody dies."""
        if scenario not in self._counts:
            of = SCENARIOS[scenario]
            with self.shared.trial(of.tiny) as trial:
                of.before(trial)
                self._counts[scenario] = torture.points(trial, *of.arguments(trial))
                if trial.violations:
                    raise RuntimeError(f"{scenario}: {trial.violations}")
        return self._counts[scenario]

    def cell(self, point: str, seed: int) -> list[str]:
        """Die at a point, in a scenario that comes to it; in odd seeds, at a second one while going on."""
        rng = random.Random(f"{point} {seed}")
        able = [name for name in SCENARIOS if self.counts(name)[point]]
        if not able:
            return [f"no scenario comes to {point}"]
        chosen = able[seed % len(able)]
        scenario = SCENARIOS[chosen]
        for count in (1 + rng.randrange(self.counts(chosen)[point]), 1):  # how often may depend on time
            with self.shared.trial(scenario.tiny) as trial:
                scenario.before(trial)
                arguments = scenario.arguments(trial)
                if not torture.die_at(trial, point, count, *arguments):
                    continue
                if seed % 2:
                    self._die_again(trial, rng, arguments)
                trial.finish(*arguments)
                return [f"{chosen}, {count}: {violation}" for violation in trial.violations]
        return [f"{chosen} did not come to {point}"]

    def _die_again(self, trial: Trial, rng: random.Random, arguments: Arguments) -> None:
        second = rng.choice(sorted(self.counts("a resumed run")))
        torture.die_at(trial, second, 1 + rng.randrange(3), *arguments, name="died again")


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """All points in all seeds; the short form: every point once, in groups of the seed."""
    with Torture(folder) as shared:
        part = Failpoints(shared)

        def each() -> Iterator[Cell]:
            for seed in range(SEEDS if long else 1):
                for point in names():
                    yield f"{point} {seed}", lambda point=point, seed=seed: part.cell(point, seed)

        yield each()


PART = Part("failpoints", f"SIGKILL at each named failpoint, then `resume`; {SEEDS} seeds", cells)
