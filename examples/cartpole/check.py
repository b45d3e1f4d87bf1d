"""Judge the policy: play it greedily from fresh starts. The last line printed is its mean reward."""

from __future__ import annotations

import gymnasium
import network
import numpy as np

import rose_hpc

EPISODES = 20


def episode(env: gymnasium.Env, policy: network.Arrays, seed: int) -> float:
    """The reward of one episode, always taking the action of the highest value."""
    observation, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(int(network.values(policy, observation).argmax()))
        total += float(reward)
        over = terminated or truncated
    return total


def main() -> None:
    task = rose_hpc.current_task()
    policy = network.load(task.policy / network.FILE)
    env = gymnasium.make("CartPole-v1")
    rewards = [episode(env, policy, int(seed)) for seed in task.rng.integers(2**31, size=EPISODES)]
    print(f"{EPISODES} episodes, rewards {min(rewards):.0f} to {max(rewards):.0f}; their mean:")
    print(np.mean(rewards))


if __name__ == "__main__":
    main()
