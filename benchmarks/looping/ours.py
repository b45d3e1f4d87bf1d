"""The rounds of `benchmarks/loop.py` on rose-hpc's embedded engine: everything recorded, nothing left out.

python ours.py KIND ROUNDS ENVIRONMENTS ...    the last line is JSON: start, seconds of rounds and driver's CPU by size

KIND is functions (of a program, with values), shards (functions that write a row each, merged into a bank), named
(a configuration's functions) or commands (`/bin/true`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGAN = float(os.environ.get("BENCHMARK_BEGAN") or time.time())

NAMED = """
import time

def environment():
    return time.time()

def update(*values):
    return min(values)

def check(updated):
    return 0.0
"""
CONFIG = """
name = "rounds"
seed = 0
[environments]
{environment}
[environments.grid]
n = {sizes}
[update]
{update}
[check]
{check}
threshold = 1.0
[loop]
max_iterations = {rounds}
"""


class Clock:
    """Wall and processor time of each round but the first two."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def tick(self) -> None:
        """A round has ended."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def result(self, size: int) -> dict[str, Any]:
        """Seconds of each, and microseconds of the driver's for each rank and round."""
        seconds = [after - before for before, after in zip(self.wall[1:], self.wall[2:], strict=False)]
        cpu = (self.cpu[-1] - self.cpu[1]) / (len(self.cpu) - 2) / size * 1e6
        return {"seconds": seconds, "cpu_us": cpu}

    # -- as an observer of a run ---------------------------------------------------------------------------------------

    first: float | None = None

    def started(self, iteration: int, stage: str, environment: str) -> None:
        """A rank or stage began."""
        self.first = self.first or time.time()

    def recorded(self, record: Mapping[str, Any], progress: Any) -> None:
        """A record was written."""
        del progress
        if record["kind"] == "checkpoint":
            self.tick()

    def warned(self, text: str) -> None:
        """Nothing to do."""


async def functions(size: int, rounds: int, *, shards: bool, folder: Path) -> tuple[Clock, float]:
    """A program of decorated functions; its clock, and when the first environment stepped."""
    from radical.asyncflow import WorkflowEngine

    import rose_hpc

    clock, first = Clock(), 0.0
    asyncflow = await WorkflowEngine.create(await rose_hpc.EmbeddedExecutionBackend(), work_dir=str(folder))
    learner = rose_hpc.ParallelExperience(asyncflow, seed=0, quiet=True, run_dir=folder / "run")
    for number in range(size):

        @learner.environment_task(name=f"env_{number}", as_executable=False)
        def environment(*_args: Any) -> float:
            now = time.time()
            if shards:
                with rose_hpc.current_task().shard() as shard:
                    shard.append(observation=[0.0, 1.0], reward=1.0)
            return now

    @learner.update_task(as_executable=False)
    def update(*values: float) -> float:
        return min(values)

    @learner.as_stop_criterion(metric_name="MODEL_REWARD", threshold=1e12, as_executable=False)
    def check(updated: float) -> float:
        return updated

    try:
        async for state in learner.start(max_iter=rounds):
            clock.tick()
            first = first or float(state.metric_value or 0.0)
    finally:
        await asyncflow.shutdown()
    return clock, first


def configured(size: int, rounds: int, *, named: bool, folder: Path) -> tuple[Clock, float]:
    """A configuration's run, in this process."""
    from rose_hpc.config import load_config
    from rose_hpc.driver import drive, make_run

    (folder / "rounds_of.py").write_text(NAMED)
    parts = {part: f'function = "rounds_of:{part}"' for part in ("environment", "update", "check")}
    if not named:
        parts = {"environment": 'command = "/bin/true"\nshard = false', "update": 'command = "/bin/true"'}
        parts["check"] = 'command = "echo 0"'
    else:
        (folder / "rounds_of.py").write_text(NAMED.replace("def environment():", "def environment(n):"))
    path = folder / "config.toml"
    path.write_text(CONFIG.format(**parts, sizes=list(range(size)), rounds=rounds))
    clock = Clock()
    drive(make_run(load_config(path), folder / "run"), [clock], engine="embedded")
    return clock, clock.first or 0.0


def main() -> None:
    kind, rounds, sizes = sys.argv[1], int(sys.argv[2]), [int(size) for size in sys.argv[3:]]
    result: dict[str, Any] = {"seconds": {}, "cpu_us": {}}
    for size in sizes:
        count = max(3, rounds * sizes[0] // size) + 2
        with tempfile.TemporaryDirectory() as name:
            if kind in ("functions", "shards"):
                clock, first = asyncio.run(functions(size, count, shards=kind == "shards", folder=Path(name)))
            else:
                clock, first = configured(size, count, named=kind == "named", folder=Path(name))
        result.setdefault("start", first - BEGAN)
        facts = clock.result(size)
        result["seconds"][size], result["cpu_us"][size] = facts["seconds"], facts["cpu_us"]
    print("\n" + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
