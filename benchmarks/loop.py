"""What the loop costs: start to the first environment step, iterations of trivial commands and functions, and rivals.

    python benchmarks/loop.py [--quick] [--iterations N] [--environments N] [--no-rivals] [--plot FILE]

Parsl, Ray and Dask are installed into a virtual environment of their own (~/.cache/rose-hpc/rivals-3.x), the first
time; the same trivial rounds run on each and on the embedded engine in turn, ours with the journal on: see looping/.

The commands copy a ready shard, read the bank and print a number, so that nearly all of an iteration is ours. Beside
it, in the same run: the same commands started directly, and through asyncflow's own LocalExecutionBackend (no shards
checked, nothing merged, nothing recorded), which is what a hand-written loop on the engine would do.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from looping import compare

from rose_hpc import ShardWriter

GOALS = {"overhead": 0.25, "start": 1.5, "help": 0.3, "status": 0.3}


def write_project(folder: Path, environments: int, iterations: int) -> list[list[str]]:
    """A config of trivial commands; the commands of one iteration, with files of their own, for the rivals."""
    with ShardWriter(folder / "ready.h5") as shard:
        ones = np.ones((100, 4), dtype=np.float32)
        shard.extend(observations=ones, next_observations=ones, actions=np.zeros(100, int), rewards=np.ones(100))
    (folder / "collect.sh").write_text('cp ready.h5 "$ROSE_HPC_SHARD"\ndate +%s.%N > "stepped-$ROSE_HPC_ENVIRONMENT"\n')
    (folder / "update.sh").write_text('wc -c < "$ROSE_HPC_BANK" > "$ROSE_HPC_POLICY/size"\n')
    (folder / "check.sh").write_text('cat "$ROSE_HPC_POLICY/size" > /dev/null\necho 0\n')
    (folder / "config.toml").write_text(
        f"""
name = "trivial"
seed = 0
[environments]
command = "sh collect.sh"
[environments.grid]
n = {list(range(environments))}
[update]
command = "sh update.sh"
[check]
command = "sh check.sh"
threshold = 1.0
[loop]
max_iterations = {iterations}
"""
    )
    (folder / "policy").mkdir()
    return [["sh", "collect.sh"]] * environments + [["sh", "update.sh"], ["sh", "check.sh"]]


def bare(folder: Path, commands: list[list[str]]) -> float:
    """One round of the same commands, started directly, as many at once as there are cores; seconds."""
    variables = {"ROSE_HPC_BANK": "ready.h5", "ROSE_HPC_POLICY": "policy", "ROSE_HPC_ENVIRONMENT": "bare"}

    def run(index: int) -> None:
        env = {**os.environ, **variables, "ROSE_HPC_SHARD": f"copy-{index}.h5"}
        subprocess.run(commands[index], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)

    began = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(run, range(len(commands) - 2)))
    run(len(commands) - 2)
    run(len(commands) - 1)
    return time.perf_counter() - began


async def asyncflow_rounds(folder: Path, commands: list[list[str]], rounds: int) -> list[float]:
    """The same commands as tasks of radical.asyncflow on its own LocalExecutionBackend; seconds of each round."""
    from radical.asyncflow import LocalExecutionBackend, WorkflowEngine

    engine = await WorkflowEngine.create(await LocalExecutionBackend(ThreadPoolExecutor()), work_dir=str(folder))
    base = "env ROSE_HPC_BANK=ready.h5 ROSE_HPC_POLICY=policy ROSE_HPC_ENVIRONMENT=rival ROSE_HPC_SHARD=copy-{}.h5 {}"

    @engine.executable_task
    async def task(index: int) -> str:
        return base.format(index, shlex.join(commands[index]))

    seconds = []
    os.chdir(folder)
    for _ in range(rounds):
        began = time.perf_counter()
        await asyncio.gather(*[task(index) for index in range(len(commands) - 2)])
        await task(len(commands) - 2)
        await task(len(commands) - 1)
        seconds.append(time.perf_counter() - began)
    await engine.shutdown()
    return seconds


def command(*arguments: str, cwd: Path) -> float:
    """Seconds of one call of the command line."""
    began = time.perf_counter()
    argv = [sys.executable, "-m", "rose_hpc", *arguments]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--environments", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute")
    parser.add_argument(
        "--plot",
        type=lambda name: Path(name).resolve(),
        metavar="FILE",
        help="draw the rounds over the number of environments",
    )
    parser.add_argument("--no-rivals", action="store_true", help="only what is ours")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = write_project(folder, options.environments, options.iterations)
        own = statistics.median(bare(folder, commands) for _ in range(10))
        rival = statistics.median(asyncio.run(asyncflow_rounds(folder, commands, 10))[1:])

        began = time.time()
        command("run", "config.toml", "--run-dir", "run", cwd=folder)
        records = [json.loads(line) for line in (folder / "run/journal.jsonl").read_text().splitlines()]
        closed = [record["time"] for record in records if record["kind"] == "checkpoint"]
        first = next(record for record in records if record["kind"] == "rank")
        start = first["time"] - first["seconds"] - began
        ours = statistics.median(b - a for a, b in itertools.pairwise(closed))
        rows = [
            ("an iteration, beyond the commands' own time", ours - own, "overhead"),
            ("start to the first environment's start", start, "start"),
            ("rose-hpc --help", min(command("--help", cwd=folder) for _ in range(5)), "help"),
            ("rose-hpc status RUN", min(command("status", "run", cwd=folder) for _ in range(5)), "status"),
        ]
        print(f"{options.environments} environments, update and check: commands that copy or read a file; medians")
        table = [("the commands alone", own), ("asyncflow's local backend, unchecked", rival), ("rose-hpc run", ours)]
        for what, seconds in table:
            print(
                f"  {what:<44}{seconds * 1e3:6.0f} ms   {seconds / own:5.2f}x   {seconds / rival:5.2f}x of asyncflow's"
            )
        for what, seconds, goal in rows:
            verdict = "ok" if seconds <= GOALS[goal] else "MISSED"
            print(f"{what:<46}{seconds:6.3f} s   goal {GOALS[goal]} s   {verdict}")
    if not options.no_rivals:
        print()
        compare.main(quick=options.quick, plot=options.plot)


if __name__ == "__main__":
    main()
