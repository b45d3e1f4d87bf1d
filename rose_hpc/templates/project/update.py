"""Improve the policy from the merged experience of all environments: the cross-entropy method.

What is in the folder `task.policy` when this ends well is the next policy.
"""

from __future__ import annotations

import numpy as np

import rose_hpc

BEST = 15


def improve(actions: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and width of the best trials: where to search next."""
    best = actions[np.argsort(rewards)[-BEST:]]
    return best.mean(axis=0), best.std(axis=0) + 0.1


def main() -> None:
    task = rose_hpc.current_task()
    bank = task.bank()
    mean, width = improve(np.asarray(bank["actions"]), np.asarray(bank["rewards"]))
    np.savez(task.policy / "policy.npz", mean=mean, width=width)
    print(f"{len(bank)} trials, gains {mean.round(2)}")


if __name__ == "__main__":
    main()
