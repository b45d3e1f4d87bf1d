"""What losing nothing costs: journal, digests, fsync and renames of an iteration, and going on with a long run.

    python benchmarks/cost.py [--rounds N] [--folder DIR]

The first table is of the real loop, on real files, with tasks that only wait: environments, update and check together
take 10 ms or a second. It says for how long the loop stands still for what losing nothing takes, by kind: sealing,
what verification adds to a merge, publishing, copies and digests of policy and state, records, retention, and waiting
for the disk at the end of an iteration; what goes on beside tasks costs nothing. Below it what an iteration takes
beyond its tasks altogether, which is also the driver's other work. Beside it: one write, fsync, rename and fsync of
the folder, which is the least that publishing one small file costs on this disk; an iteration has five of them and
more. The second starts the real command on a run of 10,000 iterations and of 1, and says how long an iteration takes
after so many others.

Goals: at most 2 ms an iteration and 1 ms more for each shard; 5 % of an iteration of a second with 4 shards; the first
stage of the long run begins within 3 s. Absolute times are one machine's and its load's; the ratios say more.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import inspect
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from rose_hpc import ShardWriter, merge_shards, publishing, rundir
from rose_hpc.execution import host
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.experience import shard as shards_module
from rose_hpc.journal import encode
from rose_hpc.loop import Loop
from rose_hpc.rundir import RunDir
from rose_hpc.session import Session
from rose_hpc.stages import Stages
from rose_hpc.tries import Tries
from rose_hpc.workflow import Criterion, Environment, Work, Workflow

GOAL_BASE_MS, GOAL_SHARD_MS, GOAL_SHARE, GOAL_RESUME_S = 2.0, 1.0, 0.05, 3.0
SHARDS = (1, 4, 16)
SHORT_S, LONG_S = 0.010, 1.0
LONG = 10_000
MORE = 20  # iterations that each start of the command does
ALL = "in all beyond its tasks"


class Timer:
    """For how long the loop stood still, by kind, in seconds; what is timed within something timed counts there."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self._depth = 0

    def time(self, kind: str, owner: Any, name: str) -> None:
        """Have a function of a module or class timed from now on; in other threads it is not."""
        function, loops = getattr(owner, name), threading.get_ident()

        @contextmanager
        def timed() -> Iterator[None]:
            began, self._depth = time.perf_counter(), self._depth + 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self.sums[kind] += time.perf_counter() - began

        @functools.wraps(function)
        def of_a_function(*args: Any, **kwargs: Any) -> Any:
            with timed() if threading.get_ident() == loops else nullcontext():
                return function(*args, **kwargs)

        @functools.wraps(function)
        async def of_a_coroutine(*args: Any, **kwargs: Any) -> Any:
            with timed():
                return await function(*args, **kwargs)

        setattr(owner, name, of_a_coroutine if inspect.iscoroutinefunction(function) else of_a_function)


class Waiting:
    """An engine whose tasks do nothing but wait; sealing and merging are real. It keeps what was not the loop's time.

    Args:
        stage_s: how long environments (all at once), update and check wait.
        ready: where the shards are that environments leave.
        timer: is told what verification adds to a merge.
    """

    cores, free_cores, nodes, width, has_nodes, deadline = 2, (2,), 1, None, False, None
    carries_attempts, is_local = False, True

    def __init__(self, stage_s: float, ready: Path, timer: Timer) -> None:
        self.stage_s, self.ready = stage_s, ready
        self.tasks_s, self.timer = 0.0, timer
        self._environments: asyncio.Task[None] | None = None

    async def run(self, attempt: Attempt, call: Any = None, on_start: Any = None) -> tuple[Outcome, Any]:
        """Carry out an attempt."""
        del call
        if on_start is not None:
            on_start()
        if attempt.merge is not None:
            return Outcome(attempt.id, ok=True, info=self._merged(attempt.merge)), None
        if attempt.seal is None:
            await self._wait()
            if attempt.env["ROSE_HPC_STAGE"] == "update":
                began = time.perf_counter()
                for folder in ("POLICY", "STATE"):
                    Path(attempt.env[f"ROSE_HPC_{folder}"], "weights").write_bytes(os.urandom(20_000))
                self.tasks_s += time.perf_counter() - began
            return Outcome(attempt.id, ok=True, seconds=self.stage_s, stdout="0"), None
        if self._environments is None:
            self._environments = asyncio.create_task(self._wait())
        await self._environments
        shard = attempt.env["ROSE_HPC_SHARD"]
        (self.ready / Path(shard).name).rename(shard)
        return Outcome(
            attempt.id, ok=True, seconds=self.stage_s, info=shards_module.seal(shard, fsync=True).to_json()
        ), None

    async def close(self) -> None:
        """Nothing to do."""

    async def _wait(self) -> None:
        began = time.perf_counter()
        await asyncio.sleep(self.stage_s)
        self.tasks_s += time.perf_counter() - began  # longer than asked for, as timers are

    def _merged(self, message: Any) -> Any:
        """The merge, of which only verification is a cost."""
        self._environments = None
        began = time.perf_counter()
        merge_shards(list(message["shards"]), f"{message['bank']}-bare", verify=False, workers=1)
        bare = time.perf_counter()
        with redirect_stdout(io.StringIO()):
            answer, _ = host.merge({**message, "workers": 1})
        ended = time.perf_counter()
        os.unlink(f"{message['bank']}-bare")  # noqa: PTH108 - it is a string
        more = max(0.0, ended - bare - (bare - began))
        self.timer.sums["verification of the merge"] += more
        self.tasks_s += time.perf_counter() - began - more
        return answer["info"]


def write_shards(run: RunDir, folder: Path, names: list[str], rounds: int) -> None:
    """What the environments leave: 200 rows each, under the names of their attempts."""
    rng = np.random.default_rng(0)
    for iteration in range(rounds):
        for name in names:
            path = folder / f"{iteration:04d}-collect-{name}-0.1.h5"
            attributes = {"run": run.name, "environment": name, "iteration": iteration}
            with ShardWriter(path, attributes=attributes, fsync=False) as shard:
                observations = rng.random((200, 4)).astype(np.float32)
                shard.extend(observations=observations, rewards=np.ones(200, np.float32))


async def iterations(timer: Timer, folder: Path, shards: int, rounds: int, of_s: float) -> list[Counter[str]]:
    """Milliseconds of each kind, by iteration; the first, which is like no other, left out."""
    run = rundir.create("cost", folder / f"cost-{shards}")
    names = [f"env_{k}" for k in range(shards)]
    ready = folder / f"ready-{shards}"
    ready.mkdir()
    write_shards(run, ready, names, rounds)
    os.sync()  # what was written for this is not to be waited for in it
    work = Work(argv=("true",))
    environments = tuple(Environment(name, work) for name in names)
    criterion = Criterion(work, "reward", ">", 1.0)
    workflow = Workflow("cost", folder, environments, work, criterion, max_iterations=rounds)
    session, engine, costs = Session(run), Waiting(of_s / 3, ready, timer), []
    session.begin({"name": "cost", "source": "config", "seed": 0, "environments": names, "window": 1})
    loop = Loop(Stages(Tries(session, workflow, engine)))  # type: ignore[arg-type]  # it looks like one
    try:
        began, tasks_s = time.perf_counter(), 0.0
        timer.sums.clear()
        async for _ in loop.iterations():
            now = time.perf_counter()
            cost = Counter({kind: 1000 * seconds for kind, seconds in timer.sums.items()})
            costs.append(cost + Counter({ALL: 1000 * (now - began - (engine.tasks_s - tasks_s))}))
            timer.sums.clear()
            began, tasks_s = now, engine.tasks_s
    finally:
        session.close()
    return costs[1:]


def lost_nothing(costs: Counter[str]) -> float:
    """What losing nothing takes of it."""
    return costs.total() - costs[ALL]


def quartile(costs: list[Counter[str]]) -> Counter[str]:
    """The iteration that a quarter of them is quicker than."""
    return sorted(costs, key=lost_nothing)[len(costs) // 4]


def publish_small(folder: Path, rounds: int) -> float:
    """Milliseconds that publishing one small file takes."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        publishing.write_file(folder / "small", b"x" * 500)
        took.append(1000 * (time.perf_counter() - began))
    return sorted(took)[len(took) // 4]


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
[retention]
policies = 2
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


def pace(run: RunDir) -> float:
    """Milliseconds of an iteration, the median of the last ones."""
    lines = run.journal.read_bytes().splitlines()[-12 * MORE :]
    closed = [record["time"] for record in map(json.loads, lines) if record["kind"] == "checkpoint"][1 - MORE :]
    return 1000 * statistics.median(after - before for before, after in itertools.pairwise(closed))


def main() -> int:
    """Measure, print, and hold against the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="on the file system to measure; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        timer = Timer()
        for kind, owner, name in (
            ("sealing", shards_module, "seal"),
            ("publishing", publishing, "name_all"),
            ("publishing", publishing, "name_trees"),
            ("copies of policy and state", Stages, "_copy_committed"),
            ("records", Session, "record_all"),
            ("retention", Loop, "_close"),
            ("waiting for the disk", Session, "settle"),
        ):
            timer.time(kind, owner, name)
        short: dict[int, list[Counter[str]]] = {n: [] for n in SHARDS}
        for turn in range(3):  # in turn, so that whatever else the disk does meets all of them
            for n in SHARDS:
                (here := folder / f"{turn}-{n}").mkdir()
                short[n] += asyncio.run(iterations(timer, here, n, options.rounds, SHORT_S))
        (folder / "long").mkdir()
        of_a_second = asyncio.run(iterations(timer, folder / "long", 4, 5, LONG_S))
        floor = publish_small(folder, options.rounds)
        runs = {n: long_run(folder, n) for n in (1, LONG)}
        starts = {n: min(resume(run, n + k * MORE) for k in (1, 2, 3)) for n, run in runs.items()}
        paces = {n: pace(run) for n, run in runs.items()}
    quartiles = {n: quartile(of) for n, of in short.items()}
    totals = {n: lost_nothing(of) for n, of in quartiles.items()}
    print(f"{'ms an iteration of 10 ms':34}" + "".join(f"{n:>9} shards" for n in SHARDS))
    for kind in sorted(set().union(*quartiles.values()) - {ALL}):
        print(f"{kind:34}" + "".join(f"{quartiles[n][kind]:16.2f}" for n in SHARDS))
    print(f"{'losing nothing, in all':34}" + "".join(f"{totals[n]:16.2f}" for n in SHARDS))
    print(f"{ALL:34}" + "".join(f"{quartiles[n][ALL]:16.2f}" for n in SHARDS))
    print(f"{'publishing one small file':34}{floor:16.2f}")
    slope = (totals[SHARDS[-1]] - totals[SHARDS[0]]) / (SHARDS[-1] - SHARDS[0])
    base = totals[SHARDS[0]] - slope * SHARDS[0]
    print(f"\nan iteration {base:.2f} ms (goal {GOAL_BASE_MS:g}), a shard {slope:.2f} ms more (goal {GOAL_SHARD_MS:g})")
    share = lost_nothing(quartile(of_a_second)) / 1000 / LONG_S
    print(f"of an iteration of 1 s with 4 shards: {100 * share:.2f} % (goal {100 * GOAL_SHARE:g} %)")
    ratio = starts[LONG] / starts[1]
    print(f"resume to the first step: {starts[LONG]:.2f} s after {LONG:,} iterations (goal {GOAL_RESUME_S:g})")
    print(f"    that is {ratio:.2f} times the {starts[1]:.2f} s after one iteration")
    print(
        f"an iteration of five commands after {LONG:,} others: {paces[LONG] / paces[1]:.2f} times the {paces[1]:.1f} ms"
    )
    met = base <= GOAL_BASE_MS, slope <= GOAL_SHARD_MS, share <= GOAL_SHARE, starts[LONG] <= GOAL_RESUME_S
    print("all goals met" if all(met) else "NOT all goals met")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
