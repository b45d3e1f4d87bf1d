"""What losing nothing costs: journal, digests, fsync and renames of an iteration, and going on with a long run.

    python benchmarks/cost.py [--rounds N] [--folder DIR]

The first table does what the loop does around the tasks of an iteration, with the loop's own functions and real files,
for 1, 4 and 16 shards: sealing, publishing, recording, what a verified and synced merge takes beyond a bare one,
copies and digests of policy and state, the checkpoint's sync, retention. Beside it: one write, fsync, rename and fsync
of the folder, which is the least that publishing one small file costs on this disk. The second starts the real command
on a run of 10,000 iterations and of 1.

Goals: at most 2 ms an iteration and 1 ms more for each shard; 5 % of an iteration of a second with 4 shards; the first
stage of the long run begins within 3 s. Absolute times are one machine's and its load's; the ratios say more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rose_hpc import ShardWriter, merge_shards, publishing, retention, rundir
from rose_hpc.experience.shard import seal
from rose_hpc.journal import encode
from rose_hpc.rundir import RunDir
from rose_hpc.session import Session
from rose_hpc.workflow import Environment, Work, Workflow

GOAL_BASE_MS, GOAL_SHARD_MS, GOAL_SHARE, GOAL_RESUME_S = 2.0, 1.0, 0.05, 3.0
SHARDS = (1, 4, 16)
LONG = 10_000
COLUMNS = {"observations": "float32[4]", "rewards": "float32"}


class Timer:
    """Sums of what each kind of work took, in seconds."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def __call__(self, what: str, work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        took = time.perf_counter() - began
        self.sums[what] = self.sums.get(what, 0.0) + took
        return took


def write_shards(run: RunDir, iteration: int, names: list[str]) -> dict[str, Path]:
    """What the environments leave: 200 rows each."""
    rng = np.random.default_rng(iteration)
    paths = {}
    for name in names:
        paths[name] = run.scratch / f"{iteration}-{name}.h5"
        with ShardWriter(paths[name], attributes={"run": run.name, "environment": name}, fsync=False) as shard:
            observations = rng.random((200, 4)).astype(np.float32)
            shard.extend(observations=observations, rewards=np.ones(200, np.float32))
    return paths


def iteration_of(session: Session, workflow: Workflow, iteration: int, timer: Timer) -> None:
    """Everything of an iteration that is ours, in the loop's order; what the tasks do themselves is not timed."""
    run, names = session.run, [e.name for e in workflow.environments]
    written = write_shards(run, iteration, names)
    for path in written.values():
        timer("seal", lambda path=path: seal(path, fsync=True))

    def accept() -> None:  # as when all of them come at once
        session.check_owned()
        publishing.publish_all({path: run.shard(iteration, name) for name, path in written.items()})
        for name in names:
            fields = {"environment": name, "attempt": 1, "node": "n", "seconds": 0.1, "columns": COLUMNS}
            session.record(
                "rank", iteration=iteration, stage="collect", **fields, rows=200, bytes=9000, digest="0" * 32
            )

    timer("publish and record shards", accept)
    timer("records", lambda: session.record("stage", iteration=iteration, stage="collect", rows=200, bytes=9000))
    shards = [run.shard(iteration, name) for name in names]
    bare = timer("(a bare merge)", lambda: merge_shards(shards, run.scratch / "bare", verify=False, workers=1))
    whole = timer("(the merge)", lambda: merge_shards(shards, run.scratch / "bank", fsync=True, workers=1))
    timer.sums["digests and fsync of the merge"] = timer.sums.get("digests and fsync of the merge", 0.0) + max(
        0.0, whole - bare
    )
    timer("publish banks, policies, states", lambda: publishing.publish(run.scratch / "bank", run.bank(iteration)))
    fields = {"rows": 200, "bytes": 9000, "digest": "0" * 32, "seconds": 0.1}
    timer("records", lambda: session.record("stage", iteration=iteration, stage="merge", **fields))
    trees: dict[Path, Path] = {}
    for name, of in (("policy", run.policy), ("state", run.state)):
        copy = run.scratch / name
        source = of(iteration - 1) if iteration else None
        timer("copy and check policies, states", lambda c=copy, s=source: publishing.copy_tree(s, c))
        timer("copy and check policies, states", lambda c=copy: publishing.tree_facts(c))
        (copy / "weights").write_bytes(os.urandom(20_000))
        trees[copy] = of(iteration)
    facts: list[dict[str, object]] = []
    timer("publish banks, policies, states", lambda: facts.extend(publishing.publish_trees(trees)))
    folders = dict(zip(("policy", "state"), facts, strict=True))
    timer("records", lambda: session.record("stage", iteration=iteration, stage="update", seconds=0.1, **folders))
    timer("records", lambda: session.record("stage", iteration=iteration, stage="check", seconds=0.1, reward=1.0))
    timer("records", lambda: session.record("checkpoint", iteration=iteration))
    timer("sync of the journal", session.journal.sync)
    timer("retention", lambda: retention.apply(run, workflow, session.progress, iteration, sweep=False))


def begin(folder: Path, shards: int, rounds: int) -> tuple[Session, Workflow]:
    """A new run of so many environments, driven by us."""
    run = rundir.create("cost", folder / f"cost-{shards}")
    names = tuple(Environment(f"env_{k}", Work()) for k in range(shards))
    session = Session(run)
    facts = {"name": "cost", "source": "config", "seed": 0, "environments": [e.name for e in names], "window": 1}
    session.begin(facts)
    return session, Workflow("cost", folder, names, Work(), max_iterations=rounds)


def costs(folder: Path, rounds: int) -> tuple[dict[int, dict[str, float]], float]:
    """Milliseconds of each kind of work by number of shards, and of publishing one small file as such.

    They take turns, so that whatever else the disk does meets all of them; of each the first quartile counts.
    """
    begun = {shards: begin(folder, shards, rounds) for shards in SHARDS}
    each: dict[int, list[dict[str, float]]] = {shards: [] for shards in SHARDS}
    small = Timer()
    floors = []
    for iteration in range(rounds):
        for shards, (session, workflow) in begun.items():
            timer = Timer()
            iteration_of(session, workflow, iteration, timer)
            each[shards].append({what: 1000 * s for what, s in timer.sums.items() if not what.startswith("(")})
        write = small("small", lambda: publishing.write_file(folder / "small", b"x" * 500))
        floors.append(1000 * write)
    for session, _ in begun.values():
        session.close()
    quartiles = {n: sorted(of, key=lambda sums: sum(sums.values()))[len(of) // 4] for n, of in each.items()}
    return quartiles, sorted(floors)[len(floors) // 4]


def long_run(folder: Path, iterations: int) -> RunDir:
    """A run of so many iterations, as far as its driver looks: the journal, and the last policy and state."""
    project = folder / f"project-{iterations}"
    project.mkdir()
    (project / "config.toml").write_text(
        """
name = "long"
seed = 0
[environments]
command = "sh -c 'date +%s.%N > first'"
shard = false
[environments.grid]
n = [0, 1, 2, 3, 4]
[update]
command = "true"
[loop]
max_iterations = 1
"""
    )
    command = [sys.executable, "-m", "rose_hpc", "run", project / "config.toml", "--run-dir", project / "run"]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    run = RunDir(project / "run")
    records = [json.loads(line) for line in run.journal.read_text().splitlines()]
    head = [r for r in records if r["kind"] in ("run", "job", "scripts")]
    body = [r for r in records if r["kind"] in ("rank", "stage", "checkpoint")]
    lines = [*head, *({**r, "iteration": k} for k in range(iterations) for r in body)]
    for record in lines:
        record.pop("sum", None)
    run.journal.write_bytes(b"".join(encode({**r, "seq": seq}) for seq, r in enumerate(lines)))
    if iterations > 1:
        run.iteration(0).rename(run.iteration(iterations - 1))
    return run


def resume(run: RunDir, iterations: int) -> float:
    """Seconds from the command to its first environment's first step."""
    first = run.path.parent / "first"
    first.unlink(missing_ok=True)
    command = [sys.executable, "-m", "rose_hpc", "resume", run.path, "--max-iterations", str(iterations)]
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 3:
        raise RuntimeError(done.stderr)
    return float(first.read_text()) - began


def main() -> int:
    """Measure, print, and hold against the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="on the file system to measure; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        by_shards, floor = costs(folder, options.rounds)
        starts = {n: min(resume(run, n + k) for k in (1, 2, 3)) for n in (1, LONG) for run in [long_run(folder, n)]}
    print(f"{'ms an iteration':34}" + "".join(f"{n:>9} shards" for n in SHARDS))
    for what in by_shards[SHARDS[-1]]:
        print(f"{what:34}" + "".join(f"{by_shards[n][what]:16.2f}" for n in SHARDS))
    totals = {n: sum(of.values()) for n, of in by_shards.items()}
    print(f"{'in all':34}" + "".join(f"{totals[n]:16.2f}" for n in SHARDS))
    print(f"{'publishing one small file':34}{floor:16.2f}")
    slope = (totals[SHARDS[-1]] - totals[SHARDS[0]]) / (SHARDS[-1] - SHARDS[0])
    base = totals[SHARDS[0]] - slope * SHARDS[0]
    print(f"\nan iteration {base:.2f} ms (goal {GOAL_BASE_MS:g}), a shard {slope:.2f} ms more (goal {GOAL_SHARD_MS:g})")
    print(f"of an iteration of 1 s with 4 shards: {totals[4] / 10:.2f} % (goal {100 * GOAL_SHARE:g} %)")
    ratio = starts[LONG] / starts[1]
    print(f"resume to the first step: {starts[LONG]:.2f} s after {LONG:,} iterations (goal {GOAL_RESUME_S:g})")
    print(f"    that is {ratio:.2f} times the {starts[1]:.2f} s after one iteration")
    met = base <= GOAL_BASE_MS, slope <= GOAL_SHARD_MS, totals[4] <= 1000 * GOAL_SHARE, starts[LONG] <= GOAL_RESUME_S
    print("all goals met" if all(met) else "NOT all goals met")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
