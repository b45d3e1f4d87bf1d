"""The loop on the embedded engine: what it records, what tasks see, what stays on disk, and when it stops."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import projects
import pytest

from rose_hpc.machine import available_memory_mb

#: writes what it sees to a file, and takes part in a meeting that proves that two ranks run at once
SPY = """
    import json, os, pathlib, time

    def see(**more):
        place = [os.environ.get("ROSE_HPC_" + key, "") for key in ("STAGE", "ITERATION", "ENVIRONMENT")]
        variables = {k: v for k, v in os.environ.items() if k.startswith("ROSE_HPC_") or k.endswith("_NUM_THREADS")}
        seen = {"variables": variables, "cwd": os.getcwd(), **more}
        for key in ("POLICY", "STATE"):
            folder = os.environ.get("ROSE_HPC_" + key)
            if folder:
                seen[key] = sorted(path.name for path in pathlib.Path(folder).iterdir())
        pathlib.Path("seen", "-".join(part for part in place if part) + ".json").write_text(json.dumps(seen))

    def meet_record(journal, iteration, environment):
        wanted = ('"kind":"rank"', f'"iteration":{iteration},', f'"environment":"{environment}"')
        end = time.monotonic() + 20
        while not any(all(word in line for word in wanted) for line in journal.open()):
            assert time.monotonic() < end, f"{environment} never ended"
            time.sleep(0.01)

    def meet(mine, other):
        pathlib.Path(mine).touch()
        end = time.monotonic() + 20
        while not pathlib.Path(other).exists():
            assert time.monotonic() < end, f"{other} never came"
            time.sleep(0.01)
"""
SPYING_ENVIRONMENT = """
    import os, sys, time
    begin = time.monotonic()
    import numpy as np
    import rose_hpc, spy

    task = rose_hpc.current_task()
    number = int(task.environment.split("_")[1])
    here = f"meeting-{task.iteration}-"
    if number < 3:  # both must have come before either goes on
        spy.meet(here + f"came_{number}", here + f"came_{3 - number}")
    rewards = np.full(number, float(number))
    with task.shard() as shard:
        shard.extend(observations=task.rng.random((number, 2), dtype=np.float32), rewards=rewards)
    if number == 1:  # the first in the configuration ends after the second has its record
        spy.meet_record(task.run / "journal.jsonl", task.iteration, "env_2")
    spy.see(interval=[begin, time.monotonic()])
"""
SPYING_UPDATE = """
    import os, pathlib, spy
    policy = pathlib.Path(os.environ["ROSE_HPC_POLICY"])
    spy.see(writable=[os.access(path, os.W_OK) and bool(path.stat().st_mode & 0o200) for path in policy.iterdir()])
    with open(policy / "weights", "a") as file:  # changes it in place
        file.write(os.environ["ROSE_HPC_ITERATION"])
    (policy / "nested").mkdir(exist_ok=True)
    (policy / "nested" / "more").write_text(os.environ["ROSE_HPC_ITERATION"])
    pathlib.Path(os.environ["ROSE_HPC_STATE"], "kept").touch()
"""
SPYING_CHECK = """
    import os, spy
    spy.see()
    print("some words first")
    print([1, 5, 3, 2][int(os.environ["ROSE_HPC_ITERATION"])])
"""
SPYING_CONFIG = """
    name = "spied"
    seed = 11
    [environments]
    command = "{python} environment.py"
    timeout_s = 50
    cores_per_rank = 1
    [[environments.list]]
    name = "env_1"
    parameters = { epsilon = 0.5, label = "a b'c" }
    [[environments.list]]
    name = "env_2"
    [[environments.list]]
    name = "env_3"
    [update]
    command = "{python} update.py"
    [check]
    command = "{python} check.py"
    threshold = 100
    [loop]
    max_iterations = 4
    max_concurrent = 2
    [merge]
    window = 2
"""


def spied_project(folder: Path) -> Path:
    """The project of spies."""
    (folder / "seen").mkdir(parents=True)
    return projects.write_project(
        folder,
        spy=SPY,
        environment=SPYING_ENVIRONMENT,
        update=SPYING_UPDATE,
        check=SPYING_CHECK,
        config=SPYING_CONFIG,
    )


@pytest.fixture(scope="module")
def spied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four iterations, window 2, whose scripts wrote down what they saw; in a folder with quotes."""
    folder = tmp_path_factory.mktemp("loop") / 'it\'s "spied" $HOME'
    spied_project(folder)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "the 'run'", cwd=folder)
    assert done.returncode == 3, done.stderr
    return folder / "the 'run'"


def seen(run: Path, stage: str, iteration: int, environment: str = "") -> dict[str, Any]:
    """What a script wrote down."""
    name = "-".join(part for part in (stage, str(iteration), environment) if part)
    facts: dict[str, Any] = json.loads((run.parent / "seen" / f"{name}.json").read_text())
    return facts


def test_the_journal_tells_the_run(spied: Path) -> None:
    """Every line has seq, time, kind and sum; the kinds come in the order of the loop."""
    lines = projects.records(spied)
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    assert all({"time", "kind", "sum"} <= line.keys() for line in lines)
    told = [(r["kind"], r.get("iteration"), r.get("stage")) for r in lines if r["kind"] not in ("scripts", "rank")]
    expected: list[tuple[str, int | None, str | None]] = [("run", None, None), ("job", None, None)]
    for k in range(4):
        expected += [("stage", k, stage) for stage in ("collect", "merge", "update", "check")]
        expected += [("checkpoint", k, None)]
    assert told == [*expected, ("end", 4, None)]


def test_rank_records_carry_what_the_contract_says(spied: Path) -> None:
    """A rank's record names where it ran and what it left; only a check's stage record has a reward."""
    for record in projects.records(spied, "rank"):
        wanted = {"iteration", "stage", "environment", "attempt", "node", "rows", "bytes", "digest", "seconds"}
        assert wanted <= record.keys()
        assert record["stage"] == "collect"
        assert record["node"] == os.uname().nodename
        assert record["rows"] == int(record["environment"][-1])
    rewards = [(r["kind"], r.get("stage"), r["reward"]) for r in projects.records(spied) if "reward" in r]
    assert rewards == [("stage", "check", value) for value in (1.0, 5.0, 3.0, 2.0)]


def test_rows_stand_in_the_order_of_the_configuration(spied: Path) -> None:
    """Env_2 ended before env_1 every time, and its rows still follow env_1's."""
    ended = [r["environment"] for r in projects.records(spied, "rank", iteration=3)]
    assert ended.index("env_2") < ended.index("env_1")
    with h5py.File(spied / "iter-0003" / "bank.h5") as bank:
        assert bank["rewards"][:].tolist() == [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]


def test_only_what_is_needed_stays_on_disk(spied: Path) -> None:
    """No shards, the window's banks, every policy and state, nothing in scratch, one log per rank and stage."""
    assert not list(spied.glob("iter-*/shards"))
    assert [path.parent.name for path in sorted(spied.glob("iter-*/bank.h5"))] == ["iter-0002", "iter-0003"]
    assert len(list(spied.glob("iter-*/policy/weights"))) == len(list(spied.glob("iter-*/state/kept"))) == 4
    assert not [path for path in (spied / "scratch").rglob("*") if path.is_file()]
    logs = {path.name for path in (spied / "logs").iterdir()}
    stages = ["merge", "update", "check", *(f"collect-env_{n}" for n in (1, 2, 3))]
    assert logs == {f"iter-{k:04d}-{stage}.log" for k in range(4) for stage in stages}
    assert "some words first" in (spied / "logs" / "iter-0002-check.log").read_text()


def test_policies_are_committed_and_copies_are_private(spied: Path) -> None:
    """What is published is read-only and never changes; what an update gets is its own, and writable."""
    for k in range(4):
        weights = spied / f"iter-{k:04d}" / "policy" / "weights"
        assert weights.read_text() == "0123"[: k + 1]
        assert weights.stat().st_mode & 0o222 == 0
        assert (weights.parent / "nested" / "more").read_text() == str(k)
    assert seen(spied, "update", 0)["POLICY"] == []
    assert seen(spied, "update", 0)["STATE"] == []
    assert seen(spied, "update", 3)["POLICY"] == ["nested", "weights"]
    assert seen(spied, "update", 3)["writable"] == [True, True]


def test_environments_see_what_the_contract_says(spied: Path) -> None:
    """The variables of an environment, with the policy unset the first time and the previous one's afterwards."""
    first, later = (seen(spied, "collect", k, "env_1") for k in (0, 2))
    variables = first["variables"]
    assert variables.pop("ROSE_HPC_SHARD").startswith(str(spied / "scratch"))
    assert float(variables.pop("ROSE_HPC_DEADLINE")) > projects.records(spied, "run")[0]["time"] + 49
    assert 0 <= int(variables.pop("ROSE_HPC_SEED")) < 2**31
    assert json.loads(variables.pop("ROSE_HPC_PARAMETERS")) == {"epsilon": 0.5, "label": "a b'c"}
    ours = {k: v for k, v in variables.items() if k.startswith("ROSE_HPC_") and k != "ROSE_HPC_ATTEMPT"}  # our own mark
    assert ours == {
        "ROSE_HPC_RUN": str(spied),
        "ROSE_HPC_ITERATION": "0",
        "ROSE_HPC_STAGE": "collect",
        "ROSE_HPC_ENVIRONMENT": "env_1",
    }
    assert later["variables"]["ROSE_HPC_POLICY"] == str(spied / "iter-0001" / "policy")
    assert later["variables"]["ROSE_HPC_STATE"] == str(spied / "iter-0001" / "state")
    assert first["cwd"] == str(spied.parent)


def test_update_and_check_see_the_window(spied: Path) -> None:
    """ROSE_HPC_BANKS has the last two banks, oldest first, ROSE_HPC_BANK this iteration's; the check this policy."""
    banks = [str(spied / f"iter-{k:04d}" / "bank.h5") for k in range(4)]
    for stage in ("update", "check"):
        told = [seen(spied, stage, k)["variables"] for k in range(4)]
        assert [json.loads(v["ROSE_HPC_BANKS"]) for v in told] == [banks[:1], banks[:2], banks[1:3], banks[2:]]
        assert [v["ROSE_HPC_BANK"] for v in told] == banks
        assert not any({"ROSE_HPC_SHARD", "ROSE_HPC_ENVIRONMENT", "ROSE_HPC_PARAMETERS"} & v.keys() for v in told)
        assert not any("ROSE_HPC_DEADLINE" in v for v in told)  # no timeout_s: not known
    assert told[2]["ROSE_HPC_POLICY"] == str(spied / "iter-0002" / "policy")
    assert told[2]["ROSE_HPC_STATE"] == str(spied / "iter-0002" / "state")


def test_threads_are_limited_to_the_cores_of_a_rank(spied: Path) -> None:
    """Numerical libraries are told how many threads a rank may have."""
    variables = seen(spied, "collect", 1, "env_3")["variables"]
    threads = {key: value for key, value in variables.items() if key.endswith("_NUM_THREADS")}
    assert threads.keys() >= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    assert set(threads.values()) == {"1"}


def most_at_once(run: Path) -> int:
    """How many of an iteration's environments ran at the same time, by their own clocks."""
    most = 0
    for k in range(4):
        intervals = [seen(run, "collect", k, f"env_{n}")["interval"] for n in (1, 2, 3)]
        most = max(most, *(sum(a <= begin < b for a, b in intervals) for begin, _ in intervals))
    return most


def test_ranks_run_at_once_and_no_more_than_allowed(spied: Path) -> None:
    """Two did meet (they would have failed otherwise), and with max_concurrent = 2 the third waited."""
    assert most_at_once(spied) == 2


def test_seeds_make_a_run_repeat(spied: Path, tmp_path: Path) -> None:
    """The same seed gives the same banks, policies and rewards; each task of a run has another seed."""
    spied_project(tmp_path / "again")
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", "--max-iterations", 2, cwd=tmp_path / "again")
    assert done.returncode == 3, done.stderr
    again, known = projects.essence(tmp_path / "again" / "r"), projects.essence(spied)
    assert again == {key: known[key] for key in again}
    assert len(again) == 6
    files = sorted((spied.parent / "seen").glob("*.json"))
    seeds = [json.loads(path.read_text())["variables"]["ROSE_HPC_SEED"] for path in files]
    assert len(set(seeds)) == len(seeds) == 4 * 5


def test_another_seed_makes_another_run(spied: Path, tmp_path: Path) -> None:
    """--seed reaches the tasks, and the configuration that is kept with the run."""
    spied_project(tmp_path / "other")
    done = projects.rose_hpc(
        "run", "config.toml", "--run-dir", "r", "--seed", 12, "--max-iterations", 1, cwd=tmp_path / "other"
    )
    assert done.returncode == 3, done.stderr
    run = tmp_path / "other" / "r"
    assert projects.essence(run)["0:merge"] != projects.essence(spied)["0:merge"]
    assert "seed = 12" in (run / "config.toml").read_text()


def light(folder: Path, *options: object, **files: str) -> tuple[int, Path]:
    """Run the light project with options; the exit code, and the run."""
    projects.write_project(folder, **{**projects.LIGHT, **files})
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", *options, cwd=folder)
    assert done.stdout.splitlines()[-1] == str(folder / "r")
    return done.returncode, folder / "r"


@pytest.mark.parametrize(
    ("operator", "threshold", "iterations"),
    [(">", 1, 2), (">=", 2, 2), ("<", 1.5, 1), ("<=", 1, 1), ("==", 2, 2), ("=", 2, 2)],
)
def test_every_operator_stops_as_it_says(operator: str, threshold: float, iterations: int, tmp_path: Path) -> None:
    """The check prints 1, 2, 3...: the run converges at the first number that fits, and says with which comparison."""
    code, run = light(tmp_path, "--set", f"check.operator={operator}", "--set", f"check.threshold={threshold}")
    (end,) = projects.records(run, "end")
    assert (code, end["state"], end["iteration"]) == (0, "converged", iterations)
    shown = "==" if operator == "=" else operator
    assert end["reason"] == f"MODEL_REWARD {iterations} {shown} {threshold:g}"


def test_max_iterations_stops_and_says_so(tmp_path: Path) -> None:
    """A run that did not converge ends with exit code 3, and names the limit."""
    code, run = light(tmp_path, "--max-iterations", 1)
    (end,) = projects.records(run, "end")
    assert (code, end["state"]) == (3, "max_iterations")
    assert end["reason"] == "1 of 1 iterations are done"


def test_the_criterion_outranks_the_limit(tmp_path: Path) -> None:
    """Met in the last iteration that was allowed, it is a convergence."""
    code, run = light(tmp_path, "--max-iterations", 2)
    assert (code, projects.records(run, "end")[0]["state"]) == (0, "converged")


def test_without_a_check_the_limit_is_the_end(tmp_path: Path) -> None:
    """No check, no reward: the run ends at max_iterations with exit code 3; merging nothing is skipped, on record."""
    config = projects.LIGHT["config"].replace('[check]\n        command = "{python} -S check.py"', "")
    config = config.replace("threshold = 1.5", "").replace("max_iterations = 9", "max_iterations = 2")
    code, run = light(tmp_path, config=config)
    assert code == 3
    assert not projects.records(run, "stage", stage="check")
    assert [r["skipped"] for r in projects.records(run, "stage", stage="merge")] == ["no shards"] * 2
    facts = json.loads(projects.rose_hpc("status", run, "--json").stdout)
    assert (facts["state"], facts["reward"], facts["iteration"]) == ("max_iterations", None, 2)


def test_tasks_without_banks_have_no_bank_variable(tmp_path: Path) -> None:
    """Where no environment left a shard, ROSE_HPC_BANK is unset and ROSE_HPC_BANKS empty."""
    update = "import os; assert 'ROSE_HPC_BANK' not in os.environ; assert os.environ['ROSE_HPC_BANKS'] == '[]'"
    code, _ = light(tmp_path, update=update)
    assert code == 0


def test_the_best_policy_outlives_retention(tmp_path: Path) -> None:
    """With retention.policies = 1 the newest and the best stay, and `status` names both."""
    config = projects.LIGHT["config"].replace("threshold = 1.5", "threshold = 100").replace("= 9", "= 5")
    code, run = light(
        tmp_path,
        check="import os; print([1, 5, 3, 5, 2][int(os.environ['ROSE_HPC_ITERATION'])])",
        config=config + "\n        [retention]\n        policies = 1\n",
    )
    assert code == 3
    assert sorted(path.parent.name for path in run.glob("iter-*/policy")) == ["iter-0001", "iter-0004"]
    assert sorted(path.parent.name for path in run.glob("iter-*/state")) == ["iter-0001", "iter-0004"]
    facts = json.loads(projects.rose_hpc("status", run, "--json").stdout)
    assert facts["best_policy"] == str(run / "iter-0001" / "policy")
    assert facts["policy"] == str(run / "iter-0004" / "policy")


def test_shards_and_banks_stay_when_asked(tmp_path: Path) -> None:
    """Retention can keep everything; a kept shard has the rows of its part of the bank."""
    projects.write_project(tmp_path)
    options = ["retention.shards=true", "retention.banks=all", "loop.max_iterations=2", "environments.grid.rows=[3]"]
    sets = [word for option in options for word in ("--set", option)]
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", *sets, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    for k in range(2):
        folder = tmp_path / "r" / f"iter-{k:04d}"
        with h5py.File(folder / "shards" / "env_1.h5") as shard, h5py.File(folder / "bank.h5") as bank:
            assert np.array_equal(shard["observations"][:], bank["observations"][:])


def test_a_run_inside_a_task_is_a_run_of_its_own(tmp_path: Path) -> None:
    """A script that starts `rose-hpc run` itself is not mistaken for the run it is part of."""
    projects.write_project(tmp_path / "inner", **projects.LIGHT)
    environment = """
        import subprocess, sys
        done = subprocess.run([sys.executable, "-m", "rose_hpc", "run", "inner/config.toml", "--run-dir", "inner/r"])
        sys.exit(done.returncode)
    """
    config = projects.LIGHT["config"].replace("{python} -S environment.py", "{python} environment.py")
    code, run = light(tmp_path, "--set", "check.threshold=0", environment=environment, config=config)
    assert code == 0
    assert projects.records(tmp_path / "inner" / "r", "end")[0]["state"] == "converged"
    assert len(projects.records(run, "run")) == 1


def test_as_many_run_at_once_as_there_is_memory_for(folder: Path) -> None:
    """Environments that take more than half of the memory follow each other; what takes more than all is refused."""
    alone = """
        import pathlib, time
        pathlib.Path("busy").mkdir()  # fails while another one is here
        time.sleep(0.2)
        pathlib.Path("busy").rmdir()
    """
    config = projects.write_project(folder, **{**projects.LIGHT, "environment": alone})
    memory_gb = available_memory_mb() / 1024
    grid = ("--set", "environments.grid.x=[1,2,3]")
    most = (*grid, "--set", f"environments.mem_gb_per_rank={0.6 * memory_gb}")
    done = projects.rose_hpc("run", config, "--run-dir", "r", *most, "--max-iterations", 1)
    assert done.returncode == 3, done.stderr
    assert len(projects.records(folder / "r", "rank")) == 3
    plan = json.loads(projects.rose_hpc("plan", config, *most, "--json").stdout)
    assert (plan["at_once"], plan["waves"]) == (1, 3)
    refused = projects.rose_hpc("run", config, *grid, "--set", f"update.mem_gb_per_rank={1.1 * memory_gb}")
    assert refused.returncode == 2
    assert "update asks for " in refused.stderr
    assert "GB of memory, and there are " in refused.stderr
