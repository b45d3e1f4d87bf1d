"""SIGKILL at every named failpoint, in whichever process comes to it; then the run goes on, and is compared."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import invariants
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
        env: of the driver.
        after: how it ends.
    """

    tiny: Tiny
    before: Callable[[Trial], None] = lambda trial: None
    arguments: Callable[[Trial], Arguments] = lambda trial: ()
    env: Callable[[Trial], Mapping[str, str]] = lambda trial: {}
    after: Callable[[Trial, Arguments], None] = lambda trial, arguments: trial.finish(*arguments)


def killed_in_the_middle(trial: Trial) -> None:
    """Killed once before, its last record torn, a file of a rank left behind, and what says who owned it lost."""
    torture.die_at(trial, "iteration-done")
    with open(trial.run / "journal.jsonl", "a") as journal:
        journal.write('{"seq":99,"kind":"check')
    (trial.run / "scratch" / "0000-collect-env_1-0.7.h5").write_text("half a sh")
    (trial.run / "owner.json").unlink()
    shutil.rmtree(trial.run / ".owners")


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


def a_shard_was_damaged(trial: Trial) -> None:
    """A shard that had its record was cut short while nobody looked; until it has, the merge is held."""
    mark, journal = trial.folder / "held", trial.run / "journal.jsonl"
    driver = trial.start(**torture.dying("bank-described", 1, mark, "STOP"))
    if not torture.wait_until(lambda: mark.exists() and '"stage":"collect"' in journal.read_text(), 60):
        raise RuntimeError(f"no shards have records: {driver.stderr}")
    driver.kill()
    trial.settle(driver)
    shard = next((trial.run / "iter-0000" / "shards").iterdir())
    trial.harmed[shard] = size = shard.stat().st_size // 2
    os.truncate(shard, size)


def fails_once(trial: Trial) -> Mapping[str, str]:
    """An environment that fails the first time."""
    once = trial.folder / "fails once"
    once.touch()
    return {"TORTURE_FAIL": str(once)}


def submitting(trial: Trial) -> Arguments:
    """How a run is submitted."""
    return "submit", trial.torture.project(trial.tiny), "--run-dir", trial.run


def submitted(trial: Trial, arguments: Arguments) -> None:
    """Whoever submits tries again until the run is submitted; then its job comes, and ends it."""
    slurm = scripted_slurm(trial)
    later = {**slurm, "TORTURE_LATER": "600"}
    for _ in range(6):
        known = (trial.run / "journal.jsonl").exists() and list((trial.run / "slurm").glob("*.json"))
        driver = trial.start(*(("resume", trial.run) if known else arguments), **later)
        if trial.settle(driver) == 0 or " already" in driver.stderr:
            break
        if "is not empty" in driver.stderr:
            shutil.rmtree(trial.run)  # nothing was submitted: begin anew
    jobs = json.loads((trial.folder / "slurm" / "jobs.json").read_text())
    known = {path.stem for path in (trial.run / "slurm").glob("[0-9]*.json")}
    if len(jobs) != 1 or known != set(jobs):
        trial.violations.append(f"jobs {sorted(jobs)} are in the queue, the run knows {sorted(known)}")
    trial.finish("resume", trial.run, "--engine", "embedded", **slurm, SLURM_JOB_ID=next(iter(jobs)))


def finished_elsewhere(trial: Trial) -> None:
    """Another run of the same training, at its end."""
    driver = trial.start("run", trial.torture.project(trial.tiny), "--run-dir", trial.folder / "source")
    if driver.wait(torture.PATIENCE_S) not in ENDED:
        raise RuntimeError(driver.stderr)


def branching(trial: Trial) -> Arguments:
    """How a run branches off from it."""
    return "resume", trial.folder / "source", "--from-iteration", 2, "--run-dir", trial.run


def branched(trial: Trial, arguments: Arguments) -> None:
    """What is half made is made anew, what is made goes on; it ends as its source did."""
    for _ in range(6):
        made = (trial.run / "journal.jsonl").exists()
        if not made and trial.run.exists():
            shutil.rmtree(trial.run)
        if trial.settle(trial.start(*(("resume", trial.run) if made else arguments))) in ENDED:
            break
    undisturbed = trial.torture.undisturbed(trial.tiny)
    wanted = {key: value for key, value in undisturbed.items() if key != "files"}  # older policies stay with the source
    trial.violations += invariants.differences(invariants.essence(trial.run), wanted)
    trial.violations += invariants.left_over(trial.run)


def scripted_slurm(trial: Trial) -> Mapping[str, str]:
    """A Slurm of files."""
    home = trial.folder / "slurm"
    home.mkdir(exist_ok=True)
    commands = Path(__file__).parents[2] / "support" / "fake_slurm"
    return {"FAKE_SLURM": str(home), "FAKE_PYTHON": sys.executable, "PATH": f"{commands}:{os.environ['PATH']}"}


SCENARIOS = {
    "a configuration": Scenario(Tiny("config", window=2)),
    "a streamed merge": Scenario(Tiny("config", iterations=2, way="stream")),
    "policies on the node": Scenario(
        Tiny("config", iterations=2, local_policy_mb=1e-6),
        env=lambda trial: {"TMPDIR": "/dev/shm"},  # noqa: S108 - another file system than the run's
    ),
    "retention": Scenario(Tiny("config", policies=1)),
    "commands of a program": Scenario(Tiny("commands", iterations=2)),
    "functions of a program": Scenario(Tiny("functions", iterations=2)),
    "functions of a configuration": Scenario(Tiny("named", iterations=2)),
    "several learners": Scenario(Tiny("config", iterations=2, learners=2)),
    "a population of a program": Scenario(Tiny("functions", iterations=2, environments=1, learners=2)),
    "a resumed run": Scenario(Tiny("config"), killed_in_the_middle),
    "a resumed program": Scenario(Tiny("commands", iterations=2), killed_in_the_middle),
    "a policy without a record": Scenario(Tiny("config", iterations=2), killed_with_a_policy_published),
    "an extended run": Scenario(Tiny("config", iterations=2), finished_early, further),
    "a damaged shard": Scenario(Tiny("config", iterations=2), a_shard_was_damaged),
    "an environment that fails": Scenario(Tiny("config", iterations=2), env=fails_once),
    "a branch": Scenario(Tiny("config", window=2), finished_elsewhere, branching, after=branched),
    "a submitted run": Scenario(
        Tiny("config", iterations=2), arguments=submitting, env=scripted_slurm, after=submitted
    ),
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
                self._counts[scenario] = torture.points(trial, *of.arguments(trial), **of.env(trial))
                if trial.violations:
                    raise RuntimeError(f"{scenario}: {trial.violations}")
        return self._counts[scenario]

    def missing(self) -> list[str]:
        """Points that no scenario comes to."""
        return [
            f"no scenario comes to {point}" for point in names() if not any(self.counts(s)[point] for s in SCENARIOS)
        ]

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
                if not torture.die_at(trial, point, count, *arguments, **scenario.env(trial)):
                    continue
                if seed % 2 and chosen not in ("a submitted run", "a branch"):
                    self._die_again(trial, rng, arguments)
                scenario.after(trial, arguments)
                return [f"{chosen}, {count}: {violation}" for violation in trial.violations]
        return [f"{chosen} did not come to {point}"]

    def _die_again(self, trial: Trial, rng: random.Random, arguments: Arguments) -> None:
        second = rng.choice(sorted(self.counts("a resumed run")))
        torture.die_at(trial, second, 1 + rng.randrange(3), *arguments)


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """All points in all seeds; the short form: some scenario comes to every point, a sixth of which are died at."""
    with Torture(folder) as shared:
        part = Failpoints(shared)

        def each() -> Iterator[Cell]:
            yield "every point is come to", part.missing
            for seed in range(SEEDS if long else 1):
                for point in names() if long else names()[::6]:
                    yield f"{point} {seed}", lambda point=point, seed=seed: part.cell(point, seed)

        yield each()


PART = Part("failpoints", f"SIGKILL at each named failpoint, then `resume`; {SEEDS} seeds", cells)
