"""Judge the policy: the last line printed is the number that config.toml's [check] compares with its threshold."""

from __future__ import annotations

import numpy as np
from simulator import simulate

import rose_hpc

TRIALS = 50


def main() -> None:
    task = rose_hpc.current_task()
    with np.load(task.policy / "policy.npz") as policy:
        gains = policy["mean"]
    print(np.mean([simulate(gains, task.rng) for _ in range(TRIALS)]))


if __name__ == "__main__":
    main()
