"""Not run: mypy --strict checks that a typed program can use the public names as the contract writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import rose_hpc
from rose_hpc import (
    GREATER_THAN_THRESHOLD,
    EmbeddedExecutionBackend,
    ExperienceBank,
    IterationState,
    LearnerConfig,
    ParallelExperience,
    ParallelReinforcementLearner,
    SequentialReinforcementLearner,
    ShardWriter,
    Task,
    TaskConfig,
    TrackerBase,
    current_task,
    execution_backend,
    merge_shards,
)


def data(folder: Path) -> float:
    with ShardWriter(folder / "a.h5", attributes={"environment": "a"}) as shard:
        shard.append(observation=np.zeros(3), action=1, reward=0.5, terminated=False, truncated=False)
        shard.extend(observations=np.zeros((4, 3)), actions=np.zeros(4, dtype=int), rewards=np.ones(4))
    info = merge_shards([folder / "a.h5"], folder / "bank.h5", verify=True)
    rows: int = info.rows
    with ExperienceBank.open(folder / "bank.h5") as bank:
        batch: dict[str, np.ndarray] = bank.sample(2, rng=np.random.default_rng(0))
        names: tuple[str, ...] = bank.columns
        return float(batch["rewards"].sum()) + len(bank) + rows + len(names)


def in_a_task() -> int:
    task: Task = current_task()
    policy: Path | None = task.policy
    with task.shard() as shard:
        shard.append(observation=task.rng.standard_normal(3), action=0, reward=1.0)
    return len(task.bank(window=1)) + task.seed + (0 if policy is None else 1)


class Tracker(TrackerBase):
    def on_iteration(self, state: IterationState) -> None:
        print(state.iteration, state.metric_value)


async def program(asyncflow: object) -> float | None:
    await EmbeddedExecutionBackend(max_concurrent=2)
    await execution_backend()
    pe = ParallelExperience(asyncflow, seed=1, window=2)

    @pe.environment_task(name="env_1", as_executable=False, cores_per_rank=1)
    async def environment(*args: object) -> dict[str, float]:
        return {"rows": 1.0}

    @pe.update_task(as_executable=False)
    async def update(*values: object) -> int:
        return len(values)

    @pe.as_stop_criterion(metric_name="MODEL_REWARD", threshold=200, operator=GREATER_THAN_THRESHOLD)
    async def check(*args: object) -> str:
        return "check.py"

    pe.add_tracker(Tracker())
    async for state in pe.start(max_iter=3):
        pe.set_next_config(LearnerConfig(update=TaskConfig(kwargs={"rate": 0.1})))
        if state.should_stop:
            break
    last = await SequentialReinforcementLearner(asyncflow).learn(max_iter=1)
    return None if last is None else last.metric_value


async def population(asyncflow: object) -> list[IterationState | None]:
    rl = ParallelReinforcementLearner(asyncflow, seed=1)

    @rl.environment_task(as_executable=False, max_rss_gb=2.0)
    async def environment(*args: object) -> float:
        return 1.0

    @rl.update_task
    async def update(*values: object) -> str:
        return "update.py"

    rl.add_tracker(Tracker())
    by_iteration = LearnerConfig(update={0: TaskConfig(args=(1,)), -1: TaskConfig(kwargs={"rate": 0.1})})
    async for state in rl.start(parallel_learners=2, max_iter=3, learner_configs=[by_iteration, None]):
        rl.set_next_config(by_iteration, learner_id=state.learner_id)
        rl.set_next_config(by_iteration)
    async for _ in rl.start(learner_names=["a", "b"], learner_configs={"a": by_iteration}):
        rl.stop()
    return await rl.learn(3, max_iter=1)


def errors(error: rose_hpc.RoseHpcError) -> str:
    return error.hint
