"""What a task sees of its run: current_task()."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import rose_hpc
from rose_hpc import ExperienceBank, ShardWriter, current_task, merge_shards
from rose_hpc.errors import UsageError
from rose_hpc.experience.format import read_info
from rose_hpc.task import task_variables

EVERYTHING = {
    "ROSE_HPC_RUN": "/runs/toy-1",
    "ROSE_HPC_ITERATION": "3",
    "ROSE_HPC_STAGE": "collect",
    "ROSE_HPC_ENVIRONMENT": "env_1",
    "ROSE_HPC_PARAMETERS": '{"epsilon": 0.1, "map": "a b"}',
    "ROSE_HPC_SEED": "12",
    "ROSE_HPC_SHARD": "/scratch/1.h5",
    "ROSE_HPC_POLICY": "/runs/toy-1/iter-0002/policy",
    "ROSE_HPC_STATE": "/runs/toy-1/iter-0002/state",
    "ROSE_HPC_DEADLINE": "1700000000.5",
}


@pytest.fixture
def variables(monkeypatch):
    def set_all(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


def bank(path: Path, reward: float) -> Path:
    shard = path.with_suffix(".shard.h5")
    with ShardWriter(shard, fsync=False) as writer:
        writer.extend(observations=np.zeros((4, 2)), rewards=np.full(4, reward))
    merge_shards([shard], path)
    return path


def test_a_task_has_what_its_variables_say(variables):
    """Every variable of the contract is an attribute, of the type the contract gives it."""
    variables(**EVERYTHING)
    task = current_task()
    assert (task.iteration, task.stage, task.environment, task.seed) == (3, "collect", "env_1", 12)
    assert task.parameters == {"epsilon": 0.1, "map": "a b"}
    assert (task.run, task.policy) == (Path("/runs/toy-1"), Path("/runs/toy-1/iter-0002/policy"))
    assert (task.state, task.deadline) == (Path("/runs/toy-1/iter-0002/state"), 1700000000.5)


def test_what_is_not_set_is_none(variables):
    """The first iteration's environment has no policy; a run without limits has no deadline."""
    variables(ROSE_HPC_STAGE="collect")
    task = current_task()
    assert (task.policy, task.state, task.deadline, task.parameters) == (None, None, None, {})


def test_outside_a_run_the_error_says_how_to_try_by_hand():
    """A script started by hand is told which variables to set."""
    with pytest.raises(UsageError, match=r"ROSE_HPC_STAGE is not set.*try a script by hand.*ROSE_HPC_SHARD=shard.h5"):
        current_task()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROSE_HPC_PARAMETERS", "{epsilon: 1}"),
        ("ROSE_HPC_PARAMETERS", "[1]"),
        ("ROSE_HPC_PARAMETERS", "null"),
        ("ROSE_HPC_BANKS", '"bank.h5"'),
        ("ROSE_HPC_BANKS", "[1]"),
        ("ROSE_HPC_SEED", "one"),
        ("ROSE_HPC_ITERATION", "1.5"),
        ("ROSE_HPC_DEADLINE", "soon"),
    ],
)
def test_a_variable_set_wrongly_by_hand_is_an_error(variables, name, value):
    """What does not parse, or is of another kind, is one error, not a strange value later."""
    variables(ROSE_HPC_STAGE="collect", **{name: value})
    with pytest.raises(UsageError, match="does not parse"):
        current_task()


def test_the_generator_is_the_seeds(variables):
    """task.rng goes on where it was; a repeated task draws the same numbers."""
    variables(ROSE_HPC_STAGE="collect", ROSE_HPC_SEED="5")
    task, again = current_task(), current_task()
    drawn = [task.rng.random() for _ in range(3)]
    assert len(set(drawn)) == 3
    assert drawn == list(np.random.default_rng(5).random(3)) == [again.rng.random() for _ in range(3)]


def test_an_environment_writes_its_shard(variables, tmp_path):
    """task.shard() writes where the attempt says, with who wrote it; what a broken block wrote is not there."""
    variables(**{**EVERYTHING, "ROSE_HPC_SHARD": str(tmp_path / "1.h5")})
    task = current_task()
    with pytest.raises(ZeroDivisionError), task.shard() as shard:
        shard.append(observation=np.zeros(2), action=0, reward=1 / 0)
    assert not (tmp_path / "1.h5").exists()
    with task.shard() as shard:
        shard.append(observation=np.zeros(2), action=0, reward=1.0)
    info = read_info(tmp_path / "1.h5")
    assert info.rows == 1
    assert dict(info.attributes) == {
        **{"run": "toy-1", "iteration": 3, "environment": "env_1", "seed": 12},
        "parameters": {"epsilon": 0.1, "map": "a b"},
    }


def test_an_update_reads_the_windows_banks(variables, tmp_path):
    """task.bank() is the window as one, the oldest first; bank(window=1) is this iteration's."""
    banks = [bank(tmp_path / f"{k}.h5", float(k)) for k in range(3)]
    variables(ROSE_HPC_STAGE="update", ROSE_HPC_BANK=str(banks[-1]), ROSE_HPC_BANKS=json.dumps(list(map(str, banks))))
    task = current_task()
    for window, rewards in ((None, [0, 1, 2]), (2, [1, 2]), (1, [2]), (9, [0, 1, 2])):
        with task.bank(window=window) as seen:
            assert isinstance(seen, ExperienceBank)
            assert list(dict.fromkeys(np.asarray(seen["rewards"]))) == rewards
    with pytest.raises(UsageError, match="window is 0"):
        task.bank(window=0)


def test_by_hand_one_bank_is_enough(variables, tmp_path):
    """An update tried by hand with ROSE_HPC_BANK alone has that bank."""
    variables(ROSE_HPC_STAGE="update", ROSE_HPC_BANK=str(bank(tmp_path / "b.h5", 1.0)))
    with current_task().bank() as seen:
        assert len(seen) == 4


def test_a_stage_has_only_what_is_its_own(variables):
    """A check writes no shard, an environment reads no bank: asking is an error that names the stage."""
    variables(ROSE_HPC_STAGE="check")
    with pytest.raises(UsageError, match="the check stage writes no shard; only environments do"):
        current_task().shard()
    variables(ROSE_HPC_STAGE="collect", ROSE_HPC_ITERATION="2")
    with pytest.raises(UsageError, match="the collect stage of iteration 2 has no bank"):
        current_task().bank()


def test_functions_in_threads_have_tasks_of_their_own(variables):
    """Where functions of several attempts share a process, each sees its own task, and none outside of it."""
    variables(ROSE_HPC_STAGE="update")

    def seed(number: int) -> int:
        with task_variables({"ROSE_HPC_STAGE": "collect", "ROSE_HPC_SEED": str(number)}):
            return current_task().seed

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(seed, range(20))) == list(range(20))
    assert current_task().stage == "update"
    with task_variables({}), pytest.raises(UsageError, match="not running as a task"):
        current_task()


def test_the_task_is_public():
    """Scripts write rose_hpc.current_task()."""
    assert rose_hpc.current_task is current_task
