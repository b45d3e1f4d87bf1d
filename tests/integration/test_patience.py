"""Retries, iterations that go on with k of N environments, late shards: all recorded, and nothing counts twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import programs
import projects
import pytest

#: env_3 does what its name in `trouble.json` says; every row says where it comes from
ENVIRONMENT = """
    import json, os, pathlib, sys, time
    import numpy as np
    import rose_hpc

    task = rose_hpc.current_task()
    with open("tries", "a") as file:
        file.write(f"{task.environment}.{task.iteration} ")
    tries = open("tries").read().split().count(f"{task.environment}.{task.iteration}")
    trouble = json.loads(pathlib.Path("trouble.json").read_text())
    what = trouble.get(task.environment, [])
    if "fail" in what or ("fail twice" in what and tries < 3):
        sys.exit("no luck")
    pathlib.Path(f"up-{task.environment}-{task.iteration}").touch()
    while "wait" in what and not os.path.exists("go"):
        time.sleep(0.01)
    rows = int(task.environment.split("_")[1])
    place = np.tile(np.float32([task.iteration, rows]), (rows, 1))
    with task.shard() as shard:
        shard.extend(observations=place, rewards=np.ones(rows))
"""
UPDATE = """
    import json, os, pathlib, time
    import rose_hpc
    task = rose_hpc.current_task()
    waits = json.loads(pathlib.Path("trouble.json").read_text()).get("update", {})
    pathlib.Path(f"up-update-{task.iteration}").touch()
    while str(task.iteration) in waits and not os.path.exists(waits[str(task.iteration)]):
        time.sleep(0.01)
    (task.policy / "weights").write_text(str(task.iteration))
"""
CHECK = "import rose_hpc; print(rose_hpc.current_task().iteration + 1)"
CONFIG = """
    name = "patient"
    seed = 3
    [environments]
    command = "{python} environment.py"
    timeout_s = 60
    retry_backoff_s = 0.01
    [[environments.list]]
    name = "env_1"
    [[environments.list]]
    name = "env_2"
    [[environments.list]]
    name = "env_3"
    [update]
    command = "{python} update.py"
    [check]
    command = "{python} check.py"
    threshold = 99
    [loop]
    max_iterations = 2
    max_concurrent = 8
    [retention]
    banks = "all"
"""


def write(folder: Path, **trouble: Any) -> Path:
    """The project, and the trouble in it."""
    (folder / "trouble.json").write_text(json.dumps(trouble))
    return projects.write_project(folder, environment=ENVIRONMENT, update=UPDATE, check=CHECK, config=CONFIG)


def run(folder: Path, *sets: str, start: bool = False) -> Any:
    """Run it, or only start it, with such changes."""
    words = ["run", "config.toml", "--run-dir", "r", *(word for each in sets for word in ("--set", each))]
    return projects.start(*words, cwd=folder) if start else projects.rose_hpc(*words, cwd=folder)


def tries(folder: Path) -> list[str]:
    return sorted((folder / "tries").read_text().split())


def rows(folder: Path, iteration: int) -> list[list[float]]:
    """The bank's observations: for each row the iteration and the environment that it comes from."""
    with h5py.File(folder / f"r/iter-{iteration:04d}/bank.h5") as bank:
        found: list[list[float]] = bank["observations"][:].tolist()
        return found


def place(iteration: int, environment: int) -> list[list[float]]:
    """The rows of one shard: environment k writes k of them."""
    return [[float(iteration), float(environment)]] * environment


def status(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(projects.rose_hpc("status", folder / "r", "--json").stdout)
    return facts


def test_what_fails_is_tried_again(folder: Path) -> None:
    """An environment that fails twice and has two retries costs nothing but time: its rows are there, once."""
    write(folder, env_3=["fail twice"])
    done = run(folder, "environments.retries=2")
    assert done.returncode == 3, done.stderr
    assert tries(folder) == sorted([*(f"env_{n}.{k}" for n in (1, 2) for k in (0, 1)), *["env_3.0", "env_3.1"] * 3])
    assert rows(folder, 1) == place(1, 1) + place(1, 2) + place(1, 3)
    failed = projects.records(folder / "r", "attempt")
    assert [(r["iteration"], r["attempt"], r["again_s"]) for r in failed] == [
        *((0, 1, 0.01), (0, 2, 0.02), (1, 1, 0.01), (1, 2, 0.02))
    ]
    assert done.stdout.count("env_3 exited with code 1; again in 0.01 s") == 2
    assert status(folder)["failures"] == 4
    assert "4 failed tries" in projects.rose_hpc("status", folder / "r").stdout


def test_what_fails_every_time_stops_the_run(folder: Path) -> None:
    """When the retries are used up the run stops, naming how many there were and the log; the others' work is kept."""
    write(folder, env_3=["fail"])
    done = run(folder, "environments.retries=1")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "environment env_3 failed in iteration 0, after 2 tries: it exited with code 1: no luck; see " in line
    assert "iter-0000-collect-env_3.log, then" in line
    assert {r["environment"] for r in projects.records(folder / "r", "rank")} == {"env_1", "env_2"}
    (folder / "trouble.json").write_text("{}")
    resumed = projects.rose_hpc("resume", "r")
    assert resumed.returncode == 3, resumed.stderr
    assert tries(folder).count("env_1.0") == 1


def test_update_and_check_are_tried_again(folder: Path) -> None:
    """The other stages have retries of their own; each begins with the policy as it was before."""
    write(folder)
    (folder / "update.py").write_text(
        "import os, pathlib, sys, rose_hpc\n"
        "weights = rose_hpc.current_task().policy / 'weights'\n"
        "weights.write_text((weights.read_text() if weights.exists() else '') + 'u')\n"
        "mark = pathlib.Path('tried-' + os.environ['ROSE_HPC_ITERATION'])\n"
        "if not mark.exists():\n    mark.touch()\n    sys.exit(9)\n"
    )
    done = run(folder, "update.retries=1", "update.retry_backoff_s=0.01")
    assert done.returncode == 3, done.stderr
    assert [r["stage"] for r in projects.records(folder / "r", "attempt")] == ["update", "update"]
    assert (folder / "r/iter-0001/policy/weights").read_text() == "uu"


def test_an_iteration_goes_on_with_enough(folder: Path) -> None:
    """With two of three enough, a failing environment is left out of the bank, on record, but not more than twice."""
    write(folder, env_2=["fail"])
    done = run(folder, "merge.min_environments=2", "loop.max_iterations=9")
    assert done.returncode == 1
    assert "environment env_2 failed in iteration 2: it exited with code 1" in done.stderr
    assert "it has failed in 3 iterations in a row" in done.stderr
    collected = projects.records(folder / "r", "stage", stage="collect")
    assert [r["missing"] for r in collected] == [{"env_2": "failed"}] * 2
    assert rows(folder, 1) == place(1, 1) + place(1, 3)
    assert "iteration 1: goes on without env_2 (failed)" in done.stdout
    assert status(folder)["missing"] == {"env_2": "failed"}
    (folder / "trouble.json").write_text("{}")
    assert projects.rose_hpc("resume", "r", "--max-iterations", 4).returncode == 3
    assert rows(folder, 2) == place(2, 1) + place(2, 2) + place(2, 3)
    assert status(folder)["missing"] == {}


def test_too_few_stop_the_run(folder: Path) -> None:
    """When fewer are left than are enough, the run stops, and what the others did is kept."""
    write(folder, env_1=["fail"], env_2=["fail"])
    done = run(folder, "merge.min_environments=2")
    assert done.returncode == 1
    assert [r["environment"] for r in projects.records(folder / "r", "rank")] == ["env_3"]
    assert not projects.records(folder / "r", "stage")


def test_who_is_late_is_discarded(folder: Path) -> None:
    """Past the deadline an iteration goes on; without a policy lag who is late is ended, and begins anew later."""
    write(folder, env_3=["wait"])
    done = run(folder, "merge.min_environments=2", "merge.deadline_s=3")
    assert done.returncode == 3, done.stderr
    assert [r["missing"] for r in projects.records(folder / "r", "stage", stage="collect")] == [{"env_3": "late"}] * 2
    discarded = projects.records(folder / "r", "discarded")
    assert [(r["iteration"], r["environment"]) for r in discarded] == [(0, "env_3"), (1, "env_3")]
    assert rows(folder, 0) == place(0, 1) + place(0, 2)
    assert tries(folder).count("env_3.1") == 1
    assert status(folder)["late_shards"] == {"admitted": 0, "discarded": 2}
    assert not projects.processes_of(folder)


def test_a_late_shard_is_taken_into_the_next_iteration(folder: Path) -> None:
    """With a policy lag of one who is late runs on; its shard stands for it in the next bank, and only there."""
    write(folder, env_2=["wait"], update={"0": "go"})
    sets = ("merge.min_environments=2", "merge.deadline_s=6", "merge.max_policy_lag=1")  # enough for the others, too
    with run(folder, *sets, start=True) as driver:
        projects.wait_for((folder / "up-update-0").exists)
        (folder / "go").touch()  # the late one ends while the update runs, or soon after
        output, errors = driver.communicate(timeout=90)
    assert driver.returncode == 3, errors
    assert rows(folder, 0) == place(0, 1) + place(0, 3)
    assert rows(folder, 1) == place(1, 1) + place(0, 2) + place(1, 3)
    assert tries(folder).count("env_2.0") == 1
    assert "env_2.1" not in tries(folder)
    (late,) = [r for r in projects.records(folder / "r", "rank") if "lag" in r]
    assert (late["iteration"], late["environment"], late["lag"], late["rows"]) == (1, "env_2", 1, 2)
    assert "iteration 1: env_2 is here, 1 iteration late" in output
    assert status(folder)["late_shards"] == {"admitted": 1, "discarded": 0}
    assert not projects.records(folder / "r", "discarded")


def test_a_shard_that_is_too_late_is_discarded(folder: Path) -> None:
    """An environment that is later than the policy lag allows is ended, discarded once, and begins anew."""
    write(folder, env_2=["wait"])
    done = run(
        folder, "merge.min_environments=2", "merge.deadline_s=2", "merge.max_policy_lag=1", "loop.max_iterations=3"
    )
    assert done.returncode == 3, done.stderr
    assert [r["missing"] for r in projects.records(folder / "r", "stage", stage="collect")] == [{"env_2": "late"}] * 3
    discarded = projects.records(folder / "r", "discarded")
    assert [(r["iteration"], r["environment"]) for r in discarded] == [(0, "env_2"), (2, "env_2")]
    assert [word for word in tries(folder) if word.startswith("env_2")] == ["env_2.0", "env_2.2"]
    assert "the run ended" in discarded[1]["reason"]
    assert not projects.processes_of(folder)


def test_a_killed_driver_loses_who_was_late_on_record(folder: Path) -> None:
    """What a killed driver still waited for is discarded by the next one, which begins that environment anew."""
    write(folder, env_2=["wait"], update={"0": "never"})
    sets = ("merge.min_environments=2", "merge.deadline_s=2", "merge.max_policy_lag=1")
    with run(folder, *sets, start=True):
        projects.wait_for((folder / "up-update-0").exists)
    projects.wait_for(lambda: not projects.processes_of(folder), 10)
    assert status(folder)["late"] == {"env_2": 0}
    (folder / "trouble.json").write_text("{}")
    assert projects.rose_hpc("resume", "r", "--set", "merge.deadline_s=600").returncode == 3
    (lost,) = projects.records(folder / "r", "discarded")
    assert (lost["iteration"], lost["environment"], lost["reason"]) == (0, "env_2", "its driver ended")
    assert rows(folder, 1) == place(1, 1) + place(1, 2) + place(1, 3)
    assert status(folder)["late"] == {}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (["merge.min_environments=4"], "merge.min_environments: is 4, and there are 3"),
        (["merge.deadline_s=4"], "merge.deadline_s: needs min_environments"),
        (["merge.min_environments=2", "merge.max_policy_lag=1"], "merge.max_policy_lag: needs deadline_s"),
        (["environments.retries=-1"], "environments.retries: must be"),
        (["update.retry_backoff_s=0"], "update.retry_backoff_s: must be"),
    ],
)
def test_what_makes_no_sense_is_refused(setting: list[str], words: str, folder: Path) -> None:
    """One line that names the key, before there is a run."""
    write(folder)
    done = run(folder, *setting)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert words in done.stderr
    assert not (folder / "r").exists()


def test_decorators_have_the_same(tmp_path: Path) -> None:
    """Functions are tried again, too, and an update gets None for an environment that is missing."""
    body = programs.FUNCTIONS.replace("THRESHOLD", "1.5").replace(
        "seed=5)", "seed=5, patience=rose_hpc.Patience(min_environments=2))"
    )
    body = body.replace(
        "def update(from_a, from_b):", "def update(from_a, from_b, from_c):\n        assert from_c is None"
    )
    extra = """
    @pe.environment_task(name="c", as_executable=False, retries=2, retry_backoff_s=0.01)
    def c(*args, scale=1.0):
        raise RuntimeError("never")
    """
    done = programs.run(programs.write(tmp_path, body, extra, "await pe.learn()"))
    assert done.returncode == 0, done.stderr
    run = programs.run_of(tmp_path)
    assert [r["environment"] for r in projects.records(run, "attempt")] == ["c"] * 6
    assert [r["missing"] for r in projects.records(run, "stage", stage="collect")] == [{"c": "failed"}] * 2
