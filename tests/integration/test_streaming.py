"""Shards that are copied while others still come: the same banks, and a journal that says so; else a merge at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import projects
import pytest

#: each waits until those that come before it, in `order`, are in the bank, where `streamed` names the iteration
ENVIRONMENT = """
    import json, os, pathlib, time
    import numpy as np
    import rose_hpc

    task = rose_hpc.current_task()
    number, plan = int(task.environment[-1]), json.loads(pathlib.Path("plan.json").read_text())
    before = plan["order"].index(number) if task.iteration in plan["streamed"] else 0
    scratch = pathlib.Path(os.environ["ROSE_HPC_RUN"], "scratch")

    def copied():
        told = [json.loads(path.read_text()) for path in scratch.glob("*.parts/shards-*.json")]
        return sum(len(each["shards"]) for each in told)

    while copied() < before:
        time.sleep(0.01)
    if number == plan["order"][-1] and task.iteration in plan["streamed"]:
        if plan.get("fail"):
            raise SystemExit("no luck")
    rows = plan["rows"][number]
    with task.shard() as shard:
        shard.extend(observations=task.rng.random((rows, 5), np.float32), rewards=np.ones(rows))
"""
CONFIG = """
    name = "streaming"
    seed = 3
    [environments]
    command = "{python} environment.py"
    timeout_s = 60
    [[environments.list]]
    name = "env_0"
    [[environments.list]]
    name = "env_1"
    [[environments.list]]
    name = "env_2"
    [update]
    command = "{python} update.py"
    [check]
    command = "{python} check.py"
    threshold = 99
    [loop]
    max_iterations = 3
    max_concurrent = 8
"""
UPDATE = "import pathlib, rose_hpc; (rose_hpc.current_task().policy / 'weights').write_text('w')"
CHECK = "import rose_hpc; print(rose_hpc.current_task().iteration)"


def run(folder: Path, name: str, *words: str, **plan: Any) -> list[dict[str, Any]]:
    """Run it as planned; its merges."""
    (folder / "plan.json").write_text(json.dumps({"order": [0, 1, 2], "streamed": [], **plan}))
    projects.write_project(folder, environment=ENVIRONMENT, update=UPDATE, check=CHECK, config=CONFIG)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", name, *words, cwd=folder)
    assert done.returncode == 3, done.stderr
    assert not list((folder / name / "scratch").iterdir())
    return projects.records(folder / name, "stage", stage="merge")


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_bank_is_the_same_in_whatever_order_shards_come(folder: Path, order: list[int]) -> None:
    """Two of three shards are in the bank before the last is written; digests are those of a merge at once."""
    rows = [40, 40, 40]
    at_once = run(folder, "a", "--set", 'merge.way="threads"', rows=rows)
    streamed = run(folder, "b", "--set", 'merge.way="stream"', rows=rows, order=order, streamed=[0, 1, 2])
    assert [(r["way"], r.get("streamed")) for r in at_once] == [("threads", None)] * 3
    assert [(r["way"], r.get("streamed")) for r in streamed] == [("stream", 2)] * 3
    assert [r["digest"] for r in streamed] == [r["digest"] for r in at_once]
    assert projects.essence(folder / "a") == projects.essence(folder / "b")


def test_what_is_not_as_expected_is_merged_at_once(folder: Path) -> None:
    """The first shard's length is no guess for the others'; from the second iteration on each has its own."""
    rows = [10, 20, 30]
    merges = run(folder, "a", "--set", 'merge.way="stream"', rows=rows, order=[1, 2, 0], streamed=[1, 2])
    assert [r["way"] for r in merges] == ["threads", "stream", "stream"]
    assert [r["rows"] for r in merges] == [60] * 3


def test_who_is_missing_is_not_waited_for(folder: Path) -> None:
    """An environment that fails when the others are in the bank is left out of it: it is made anew, without."""
    words = ["--set", 'merge.way="stream"', "--set", "merge.min_environments=2"]
    merges = run(folder, "a", *words, rows=[10] * 3, order=[1, 2, 0], streamed=[1], fail=True)
    assert [(r["way"] == "stream", r["rows"]) for r in merges][1] == (False, 20)


def test_small_shards_are_merged_at_once_unless_it_is_asked_for(folder: Path) -> None:
    """Where it gains nothing, it is not done."""
    assert [r["way"] for r in run(folder, "a", rows=[40] * 3)] == ["threads"] * 3
