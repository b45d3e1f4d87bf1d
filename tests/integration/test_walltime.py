"""The end of a job: what cannot end is not begun, ranks know how long they have, the run is handed over."""

from __future__ import annotations

import json
import signal
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import projects
import pytest

#: steps until its time is nearly over, and keeps the rows it has
LONG = """
    import time
    import rose_hpc

    task = rose_hpc.current_task()
    assert task.deadline is not None
    with task.shard() as shard:
        while time.time() < task.deadline - 1:
            shard.append(observation=[0.0], action=0, reward=1.0, terminated=False, truncated=False)
            time.sleep(0.01)
"""
WAITING = """
    import os, pathlib, time
    pathlib.Path("up-" + os.environ["ROSE_HPC_STAGE"] + "-" + os.environ["ROSE_HPC_ENVIRONMENT"]).touch()
    while not os.path.exists("go"):
        time.sleep(0.01)
"""


def light(**before: str) -> dict[str, str]:
    """The light project, its scripts with something in front."""
    changed = {name: textwrap.dedent(text) + textwrap.dedent(projects.LIGHT[name]) for name, text in before.items()}
    return {**projects.LIGHT, **changed}


CHECK_WAITS = WAITING.replace(' + "-" + os.environ["ROSE_HPC_ENVIRONMENT"]', "")
#: name -> files, the seconds until the driver's end, options
TIMED: dict[str, tuple[dict[str, str], float, list[str]]] = {
    "cut": (
        {"environment": LONG, "config": projects.CONFIG.replace("[10, 20, 30]", "[1]")},
        25,
        ["--max-iterations", "1"],
    ),
    "collect": (light(environment=WAITING), 20, []),
    "check": (light(check=CHECK_WAITS), 20, []),
    "long update": (
        light(update="import time; time.sleep(4)\n"),
        30,
        ["--max-iterations", "99", "--set", "check.threshold=999"],
    ),
}


@dataclass
class Ended:
    """A driver whose time was over."""

    folder: Path
    code: int
    errors: str

    @property
    def run(self) -> Path:
        return self.folder / "r"

    def end(self) -> tuple[str, str]:
        (record,) = projects.records(self.run, "end")
        return record["state"], record["reason"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All of them, side by side: they mostly wait for their ends."""
    drivers = {}
    for name, (files, seconds, options) in TIMED.items():
        folder = tmp_path_factory.mktemp("walltime") / f"it's {name}"
        projects.write_project(folder, **files)
        end = str(time.time() + seconds)
        drivers[name] = (
            folder,
            projects.start(*("run", "config.toml", "--run-dir", "r", *options), cwd=folder, ROSE_HPC_DEADLINE=end),
        )
    found = {}
    for name, (folder, driver) in drivers.items():
        with driver:
            _, errors = driver.communicate(timeout=120)
        found[name] = Ended(folder, driver.returncode, errors)
    return found


def status(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(projects.rose_hpc("status", run, "--json").stdout)
    return facts


def test_a_long_episode_is_cut_and_its_rows_are_kept(ended: dict[str, Ended]) -> None:
    """An environment that looks at its deadline ends in time: its shard is recorded, and the next job uses it."""
    cut = ended["cut"]
    assert cut.code in (3, 130), cut.errors  # whether the other stages had time, too, depends on the machine
    (rank,) = projects.records(cut.run, "rank")
    assert rank["rows"] > 1
    if cut.code == 130:
        assert "the walltime is" in cut.end()[1]
        assert projects.rose_hpc("resume", cut.run).returncode == 3
    assert status(cut.run)["rows"] == rank["rows"]
    assert len(projects.records(cut.run, "rank")) == 1


@pytest.mark.parametrize("stage", ["collect", "check"])
def test_what_still_runs_at_the_end_is_ended_in_order(stage: str, ended: dict[str, Ended]) -> None:
    """A stage that outlasts the walltime is ended before it; the run says so, and goes on in the next job."""
    job = ended[stage]
    assert job.code == 130, job.errors
    state, reason = job.end()
    assert state == "stopped"
    assert f"the walltime is over, in {stage} of iteration 0" in reason
    assert ("nothing was completed in it" in reason) == (stage == "collect")
    assert not projects.processes_of(job.folder)
    (job.folder / "go").touch()
    assert projects.rose_hpc("resume", job.run).returncode == 0
    assert [r["reward"] for r in projects.records(job.run, "stage", stage="check")] == [1.0, 2.0]


def test_a_stage_that_cannot_end_is_not_begun(ended: dict[str, Ended]) -> None:
    """Once the update is known to take longer than there is time left, the run is handed over before it."""
    job = ended["long update"]
    assert job.code == 130, job.errors
    state, reason = job.end()
    done = projects.records(job.run, "stage", stage="update")
    assert (state, len(done) > 0) == ("stopped", True)
    assert f"the walltime is nearly over: the update of iteration {len(done)} takes about" in reason
    assert not projects.records(job.run, "attempt")


def test_slurms_warning_ends_nothing_and_begins_nothing(folder: Path) -> None:
    """After USR2 what runs ends by itself and is recorded, what waits is not begun, and the next job does the rest."""
    grid = "shard = false\n    [environments.grid]\n    x = [1, 2, 3]"
    config = projects.LIGHT["config"].replace("shard = false", grid)
    projects.write_project(folder, **{**light(environment=WAITING), "config": config})
    words = ("run", "config.toml", "--run-dir", "r", "--set", "loop.max_concurrent=2")
    with projects.start(*words, cwd=folder) as driver:
        projects.wait_for(lambda: (folder / "up-collect-env_1").exists() and (folder / "up-collect-env_2").exists())
        driver.send_signal(signal.SIGUSR2)
        projects.wait_for(lambda: "SIGUSR2" in driver.stdout.readline())  # type: ignore[union-attr]  # it is a pipe
        (folder / "go").touch()
        assert driver.wait(60) == 130
    assert {r["environment"] for r in projects.records(folder / "r", "rank")} == {"env_1", "env_2"}
    assert not projects.records(folder / "r", "attempt")
    assert not (folder / "up-collect-env_3").exists()
    (end,) = projects.records(folder / "r", "end")
    assert (end["state"], "told to hand over (SIGUSR2)" in end["reason"]) == ("stopped", True)
    assert projects.rose_hpc("resume", "r").returncode == 0
