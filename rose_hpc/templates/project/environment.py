"""Collect experience: try controllers around the current policy and write down how each did.

Runs once per iteration for every environment of config.toml, all at the same time, each with its own `spread`.
"""

from __future__ import annotations

import numpy as np
from simulator import simulate

import rose_hpc

TRIALS = 30


def load_policy(task: rose_hpc.Task) -> tuple[np.ndarray, np.ndarray]:
    """Mean and width of the gains to try; in the first iteration there is no policy yet."""
    if task.policy is None:
        return np.zeros(2), np.full(2, 5.0)
    with np.load(task.policy / "policy.npz") as policy:
        return policy["mean"], policy["width"]


def main() -> None:
    task = rose_hpc.current_task()
    mean, width = load_policy(task)
    with task.shard() as shard:  # appears only if this block ends well
        for _ in range(TRIALS):
            gains = task.rng.normal(mean, task.parameters["spread"] * width)
            shard.append(action=gains, reward=simulate(gains, task.rng))


if __name__ == "__main__":
    main()
