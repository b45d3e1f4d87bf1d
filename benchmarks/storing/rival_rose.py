"""ROSE's experience bank: `python THIS append|merge CHECKOUT`; the last line printed is transitions a second.

append: its bank's `add`, one by one, and `save`. merge: its learner's own `merge_banks`, over 16 saved banks.
"""

import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

what, checkout = sys.argv[1:]
sys.path.insert(0, checkout)
from rose.rl.experience import ExperienceBank, create_experience  # noqa: E402 - from the checkout


def fill(rows: int, width: int) -> ExperienceBank:
    bank = ExperienceBank()
    state, following = np.zeros(width, np.float32), np.ones(width, np.float32)
    for _ in range(rows):
        bank.add(create_experience(state.copy(), 1, 1.0, following.copy(), False))
    return bank


with tempfile.TemporaryDirectory() as folder:
    if what == "append":
        start, total = time.perf_counter(), 100_000
        fill(total, 4).save(folder, "bank.pkl")
    else:
        from rose.rl.reinforcement_learner import ParallelExperience

        total = 16 * 4000
        for number in range(16):
            fill(4000, 64).save(folder, f"experience_bank_{number}.pkl")
        start = time.perf_counter()
        ParallelExperience.merge_banks(SimpleNamespace(work_dir=folder))
        assert (Path(folder) / "experience_bank.pkl").exists()
    print(total / (time.perf_counter() - start))
