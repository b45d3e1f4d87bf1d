"""Collect experience: play CartPole with the current policy, and now and then a random action.

Runs once per iteration for every environment of the run, all at the same time, each with its own share of random
actions: ``--epsilon 0.1``, or ``parameter=2`` for the second of RATES.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import gymnasium
import network
import numpy as np

import rose_hpc

STEPS = 1000  # an iteration's experience is bounded, however well the pole is balanced
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
PARAMETERS = {f"parameter={number}": rate for number, rate in enumerate(RATES, start=1)}


def explore(policy: network.Arrays | None, epsilon: float, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """STEPS transitions: random actions with probability `epsilon`, always while there is no policy."""
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    for _ in range(STEPS):
        if policy is None or rng.random() < epsilon:
            action = int(rng.integers(2))
        else:
            action = int(network.values(policy, observation).argmax())
        following, reward, terminated, truncated, _ = env.step(action)
        yield {
            "observation": observation,
            "action": action,
            "reward": reward,
            "next_observation": following,
            "terminated": terminated,
            "truncated": truncated,
        }
        observation = env.reset()[0] if terminated or truncated else following
    env.close()


def exploration_rate(arguments: list[str] | None = None) -> float:
    """Epsilon, from the command line."""
    parser = argparse.ArgumentParser()
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--epsilon", type=float)
    either.add_argument("parameter", nargs="?", choices=PARAMETERS)
    given = parser.parse_args(arguments)
    epsilon = PARAMETERS[given.parameter] if given.epsilon is None else given.epsilon
    if not 0.0 <= epsilon <= 1.0:
        parser.error(f"epsilon is {epsilon}; it is a probability")
    return epsilon


def main() -> None:
    epsilon = exploration_rate()
    task = rose_hpc.current_task()
    policy = network.load(task.policy / network.FILE) if task.policy else None  # none in the first iteration
    ends = 0
    with task.shard() as shard:  # published only if this block ends well
        for transition in explore(policy, epsilon, task.rng):
            shard.append(**transition)
            ends += transition["terminated"]
    print(f"{STEPS} rows at epsilon {epsilon}; the pole fell {ends} times")


if __name__ == "__main__":
    main()
