"""How surely and how fast the CartPole example learns: configs/cartpole.toml, run once per seed on two cores.

    python benchmarks/cartpole_seeds.py [--seeds N] [--first SEED]

Each run is the real `rose-hpc run`, start-up included, one after the other in a folder that is removed afterwards.
Exits 1 if more than one run in twenty misses the reward or the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[1] / "configs/cartpole.toml"
GOAL_S = 60.0
CORES = 2
NOT_CONVERGED = 3  # exit code of a run that reached max_iterations


def rose_hpc(*arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
    """What the command line prints; its own message ends the benchmark where it failed."""
    argv = [sys.executable, "-m", "rose_hpc", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise SystemExit(done.stderr.strip() or f"{arguments[0]} ended with exit code {done.returncode}")
    return done.stdout


def one_run(seed: int, run: Path) -> dict[str, Any]:
    """What `rose-hpc status --json` says of a whole run, its wall time, and whether it met the goal."""
    began = time.perf_counter()
    rose_hpc("run", str(CONFIG), "--seed", str(seed), "--run-dir", str(run), allowed=(0, NOT_CONVERGED))
    seconds = time.perf_counter() - began
    status = json.loads(rose_hpc("status", str(run), "--json"))
    good = status["state"] == "converged" and seconds <= GOAL_S
    return {**status, "seed": seed, "seconds": seconds, "good": good}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # what is started from here inherits it
    print(f"{'seed':>4} {'iterations':>10} {'reward':>8} {'seconds':>8}  state")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first, options.first + options.seeds):
            run = one_run(seed, Path(folder) / f"run-{seed}")
            runs.append(run)
            facts = f"{run['iteration']:>10} {run['reward']:>8.1f} {run['seconds']:>8.1f}  {run['state']}"
            print(f"{seed:>4} {facts}{'' if run['good'] else '  MISSED'}", flush=True)
    good = sum(run["good"] for run in runs)
    seconds = [run["seconds"] for run in runs]
    print(
        f"{good} of {len(runs)} seeds reached a mean reward above {runs[0]['threshold']:.0f} within {GOAL_S:.0f} s; "
        f"median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s"
    )
    raise SystemExit(0 if 20 * good >= 19 * len(runs) else 1)


if __name__ == "__main__":
    main()
