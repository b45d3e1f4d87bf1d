"""The same from a program, which decides as it goes: learners that fall behind take over the best one's rate.

python run_me.py
"""

import asyncio

import steps
from radical.asyncflow import WorkflowEngine

import rose_hpc
from rose_hpc import LearnerConfig, TaskConfig

RATES = [0.03, 0.1, 0.3]


def with_rate(rate):
    return LearnerConfig(update=TaskConfig(kwargs={"rate": rate}))


async def main():
    asyncflow = await WorkflowEngine.create(await rose_hpc.execution_backend())
    rl = rose_hpc.ParallelReinforcementLearner(asyncflow, seed=0)
    for noise in (0.1, 0.3):

        @rl.environment_task(name=f"noise_{noise}", as_executable=False)
        def environment(noise=noise):
            steps.environment(noise)

    rl.update_task(as_executable=False)(steps.update)
    rl.as_stop_criterion(metric_name="MODEL_REWARD", threshold=-0.05, as_executable=False)(steps.check)

    latest = {}
    async for state in rl.start(max_iter=30, learner_configs=[with_rate(rate) for rate in RATES]):
        rate = state.current_config.update.kwargs["rate"]
        latest[state.learner_id] = (state.metric_value, rate)
        best, best_rate = max(latest.values())
        if state.iteration == 4 and state.metric_value < 2 * best:  # rewards are negative: far behind
            print(f"learner {state.learner_id} goes on with rate {best_rate} instead of {rate}")
            rl.set_next_config(with_rate(best_rate), learner_id=state.learner_id)
    for learner_id, (reward, rate) in sorted(latest.items()):
        print(f"learner {learner_id}: {reward:.3f} with rate {rate}")
    await asyncflow.shutdown()


asyncio.run(main())
