"""sbatch that times out, before or after the job was accepted, and a Slurm that is away: no job twice, none lost."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cells import Cell, Part

from rose_hpc import rundir
from rose_hpc.config_models import Slurm
from rose_hpc.errors import RoseHpcError, RunError
from rose_hpc.rundir import RunDir
from rose_hpc.slurm import records
from rose_hpc.slurm import submit as submitting

LONG, SHORT = 500, 25
COMMANDS = Path(__file__).parents[2] / "support" / "fake_slurm"
_TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
_AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
#: later than this, a job that sbatch did not speak of is not to be expected any more
_LATEST_S = 100


class Clock:
    """The time of those who submit, and of the scripted Slurm: waiting takes none."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.now = 1_800_000_000.0

    def time(self) -> float:
        """Unix seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let so much of it pass."""
        self.now += seconds
        self.file.write_text(str(self.now))


def answers(rng: random.Random) -> dict[str, list[dict[str, Any]]]:
    """What Slurm's commands do instead of working, one after the other, until they work."""
    sbatch: list[dict[str, Any]] = []
    for _ in range(rng.randrange(4)):
        kind = rng.choice(("accepted", "accepted", "not accepted", "away"))
        late = rng.choice((0, 0, 3, 20, _LATEST_S)) if kind == "accepted" else 0
        stderr = _AWAY if kind == "away" else _TIMED_OUT
        sbatch.append({"returncode": 1, "stderr": stderr, "do": kind == "accepted", "late_s": late})
    script = {"sbatch": [*sbatch, {"works": True}]}
    for command in ("squeue", "sacct"):
        away = [{"returncode": 1, "stderr": _AWAY, "do": False}] * rng.choice((0, 0, 1, 3))
        script[command] = [*away, {"works": True}]
    return script


def cell(folder: Path, number: int) -> list[str]:
    """One person who submits a run, and tries again, as messages say, until it is submitted."""
    rng = random.Random(number)
    home = folder / f"slurm {number}"
    home.mkdir()
    clock = Clock(home / "clock")
    clock.sleep(0)
    (home / "script.json").write_text(json.dumps(answers(rng)))
    run = rundir.create("toy", folder / f"run {number}")
    chain = rng.choice((1, 1, 2))
    with _patched(home, clock):
        for _ in range(20):
            try:
                submitting.check_idle(run)
                submitting.submit(run, submitting.plan_jobs(run, Slurm(chain=chain), run.path, "toy"))
                break
            except RunError as error:
                if "already" in str(error):
                    break
                clock.sleep(rng.choice((0, 5, 60, 200)))
            except RoseHpcError:
                clock.sleep(rng.choice((0, 5, 60, 200)))
        else:
            return ["it is never submitted"]
        clock.sleep(6 * _LATEST_S)
        for _ in range(5):  # Slurm may be away the first times
            submitting.adopt(run)
    return _held_against(run, json.loads((home / "jobs.json").read_text()), chain)


def _held_against(run: RunDir, jobs: dict[str, Any], chain: int) -> list[str]:
    """What Slurm has, and what the run knows of it."""
    found, tokens = [], [job["comment"] for job in jobs.values()]
    if len(set(tokens)) != len(tokens):
        found.append("a job was submitted twice")
    known = {record.job for record in records.read_records(run)}
    if lost := set(jobs) - known:
        found.append(f"jobs {', '.join(sorted(lost))} are in the queue, and the run does not know them")
    if ghosts := known - set(jobs):
        found.append(f"the run knows jobs {sorted(ghosts)}, which Slurm does not")
    first = [job for job in jobs.values() if job["reason"] != "Dependency"]
    if len(first) != 1 or len(jobs) > chain:
        found.append(f"{len(first)} jobs would start at once, of {len(jobs)}")
    return found


@contextmanager
def _patched(home: Path, clock: Clock) -> Iterator[None]:
    """The scripted Slurm on PATH, and the clock everywhere."""
    before = dict(os.environ)
    modules = (submitting, records)
    times = [module.time for module in modules]
    os.environ |= {"FAKE_SLURM": str(home), "FAKE_PYTHON": sys.executable, "PATH": f"{COMMANDS}:{before['PATH']}"}
    for module in modules:
        module.time = clock  # type: ignore[attr-defined]  # two of its functions are used
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        for module, time in zip(modules, times, strict=True):
            module.time = time  # type: ignore[attr-defined]  # as above


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """Numbered ones."""
    yield ((str(k), lambda k=k: cell(folder, k)) for k in range(LONG if long else SHORT))


PART = Part("sbatch", "sbatch times out before or after accepting, Slurm is away: no job twice, none lost", cells)
