"""`rose-hpc status` over many runs, beside the one question to Slurm that it asks.

    python benchmarks/status.py [--runs 1000] [--jobs 200]

Starts a Slurm of this machine (root, and Debian's packages), submits a held job for some of the runs, and counts how
often squeue is called. The runs are ten iterations old.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rose_hpc import rundir
from rose_hpc.config_models import Slurm
from rose_hpc.journal import Journal
from rose_hpc.rundir import RunDir
from rose_hpc.slurm import records

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import slurm_cluster

GOAL_S = 1.0
ROUNDS = 5


def write_run(path: Path, iterations: int) -> RunDir:
    """A run as ten iterations of five environments leave it."""
    run = rundir.create("old", path)
    journal = Journal(run.journal)
    names = [f"env_{n}" for n in range(1, 6)]
    facts = {"name": "old", "seed": 1, "environments": names, "metric": "MODEL_REWARD", "operator": ">"}
    journal.append("run", **facts, threshold=1e9, max_iterations=100)
    for iteration in range(iterations):
        for name in names:
            fields = {"iteration": iteration, "stage": "collect", "environment": name, "attempt": 1, "node": "n1"}
            journal.append("rank", **fields, rows=1000, bytes=50_000, digest="0" * 32, seconds=1.0)
        journal.append("stage", iteration=iteration, stage="merge", rows=5000, bytes=250_000, digest="0" * 32)
        tree = {"digest": "0" * 32, "files": 1, "bytes": 1000}
        journal.append("stage", iteration=iteration, stage="update", seconds=1.0, policy=tree, state=tree)
        journal.append("stage", iteration=iteration, stage="check", seconds=1.0, reward=float(iteration))
        journal.append("checkpoint", iteration=iteration)
    journal.close()
    return run


def submit_held(run: RunDir, cluster: slurm_cluster.SlurmCluster) -> None:
    token = records.new_token()
    argv = ("sbatch", "--parsable", "--hold", "--output=/dev/null", f"--comment={token}", "--wrap=true")
    done = cluster.call(*argv)
    assert done.returncode == 0, done.stderr
    records.note_submitted(run, records.new_record(token, argv, Slurm()), done.stdout.strip())


def counting(folder: Path, cluster: slurm_cluster.SlurmCluster) -> dict[str, str]:
    """An environment in which every call of squeue leaves a line in ``calls``."""
    real = subprocess.run(["which", "squeue"], env=cluster.env, capture_output=True, text=True, check=True).stdout
    (folder / "bin").mkdir()
    wrapper = folder / "bin/squeue"
    wrapper.write_text(f'#!/bin/sh\necho call >> {shlex.quote(str(folder / "calls"))}\nexec {real.strip()} "$@"\n')
    wrapper.chmod(0o755)
    return {**cluster.env, "PATH": f"{folder / 'bin'}{os.pathsep}{cluster.env['PATH']}"}


def median(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=200, help="runs that have a job in the queue")
    options = parser.parse_args()
    if why := slurm_cluster.missing():
        print(f"benchmarks/status.py was left out: {why}")
        return
    with tempfile.TemporaryDirectory() as name, slurm_cluster.running(nodes=1) as cluster:
        folder = Path(name)
        runs = [write_run(folder / "runs" / f"old-{n:04}", 10) for n in range(options.runs)]
        for run in runs[: options.jobs]:
            submit_held(run, cluster)
        env = counting(folder, cluster)

        def command(*argv: str) -> Callable[[], object]:
            return lambda: subprocess.run(argv, env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        squeue = median(command("squeue", "--noheader", "--format=%A|%T|%r|%k"))
        (folder / "calls").unlink()
        status = median(command(sys.executable, "-m", "rose_hpc", "status"))
        calls = len((folder / "calls").read_text().splitlines()) / ROUNDS
    met = "met" if status < GOAL_S else "NOT met"
    print(f"status of {options.runs} runs, {options.jobs} of them with a job in the queue; median of {ROUNDS}")
    print(f"  {'rose-hpc status':<44}{status:7.2f} s    {calls:g} call of squeue   (goal {GOAL_S:g} s: {met})")
    print(f"  {'squeue alone':<44}{squeue:7.2f} s    {status / squeue:.0f}x")


if __name__ == "__main__":
    main()
