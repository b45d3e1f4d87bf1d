"""The cross-entropy method (Rubinstein 1999): the next policy is the mean of the best quarter, and their spread."""

import json

import numpy as np

import rose_hpc

NOISE = 0.5  # added to the spread, so that it does not shrink before the best is found


def main() -> None:
    """Read the bank, write the policy."""
    task = rose_hpc.current_task()
    bank = task.bank()
    assert bank.episodes is not None  # every environment tells where its episode ends
    best = np.argsort(bank.episodes.returns, kind="stable")[-max(4, len(bank.episodes.returns) // 4) :]
    weights = bank["weights"][bank.episodes.starts[best]].astype(np.float64)
    policy = {"mean": weights.mean(axis=0).tolist(), "spread": (weights.std(axis=0) + NOISE).tolist()}
    (task.policy / "policy.json").write_text(json.dumps(policy))
    print(f"{len(bank.episodes.returns)} episodes, returns of the best from {bank.episodes.returns[best[0]]:.0f} on")


if __name__ == "__main__":
    main()
