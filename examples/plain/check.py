"""Judge the policy: the mean return of the middle one of all policies, from fresh starts."""

import json
import random

from environment import episode

import rose_hpc

EPISODES = 20


def main() -> None:
    """Print it as the last line."""
    task = rose_hpc.current_task()
    policy = json.loads((task.policy / "policy.json").read_text())
    draw = random.Random(task.seed)
    print(sum(len(episode(policy["mean"], draw)[1]) for _ in range(EPISODES)) / EPISODES)


if __name__ == "__main__":
    main()
