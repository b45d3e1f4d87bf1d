"""What a rank costs the driver, however many there are: the real driver and hub, and a stand-in for the ranks.

python benchmarks/scale.py [--quick] [--ranks N ...] [--iterations N] [--plot FILE]

The stand-in is one process that joins the hub as all nodes and answers at once, so that what is measured is ours:
loop, journal, publishing, scheduling, messages. Every point is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CORES = 64  # of a pretended node
GOAL_US = 100.0


def stand_in(keys: Path, nodes: int) -> None:
    """Join the hub as so many supervisors, and answer for every rank."""
    import zmq

    from rose_hpc.execution.frames import pack, unpack

    facts = json.loads(keys.read_text())
    context = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, max(1023, 2 * nodes))
    poller = zmq.Poller()
    for number in range(nodes):
        link = context.socket(zmq.DEALER)
        link.identity = f"node-{number}".encode()
        link.curve_serverkey = facts["server"].encode()
        link.curve_publickey, link.curve_secretkey = facts["public"].encode(), facts["secret"].encode()
        link.connect(facts["endpoints"][-1])
        link.send(pack({"op": "join", "node": f"n{number}", "cores": CORES, "gpus": [], "memory_mb": 2**20}))
        poller.register(link, zmq.POLLIN)
    while True:
        if os.getppid() == 1:
            return  # whoever measured is gone
        for link, _ in poller.poll(1000):
            said = []
            while link.poll(0):
                for message, _payload in unpack(link.recv()):
                    if message["op"] == "end":
                        return
                    said += answers(message)
            if said:
                link.send(b"".join(map(pack, said)))


def answers(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a supervisor says of an attempt: that it has begun, and that it has ended well."""
    if message["op"] != "run":
        return []
    attempt = message["attempt"]
    info = None
    if attempt.get("seal"):
        path = attempt["env"]["ROSE_HPC_SHARD"]
        Path(path).write_bytes(b"a shard")
        info = info_of(path)
    elif attempt["kind"] == "merge":
        Path(attempt["merge"]["bank"]).write_bytes(b"a bank")
        info = info_of(attempt["merge"]["bank"])
    outcome = {"id": attempt["id"], "ok": True, "seconds": 0.1, "node": "n0", "stdout": "1\n", "info": info}
    return [{"op": "started", "id": attempt["id"], "pid": 1}, {"op": "done", "outcome": outcome}]


def info_of(path: str) -> dict[str, Any]:
    columns = {name: {"dtype": "float32", "shape": [4]} for name in ("observations", "next_observations")}
    return {"path": path, "rows": 100, "bytes": 7, "digest": "0" * 32, "columns": columns, "returns": {}}


async def drive(ranks: int, iterations: int, shards: bool, folder: Path) -> dict[str, Any]:
    """A run of so many ranks; what it cost this process."""
    from radical.asyncflow import WorkflowEngine

    from rose_hpc import rundir
    from rose_hpc.driver import collect_seldom, run_facts
    from rose_hpc.execution.backend import AttemptBackend
    from rose_hpc.execution.engine import Engine
    from rose_hpc.execution.hub import Hub
    from rose_hpc.loop import Loop
    from rose_hpc.session import Session
    from rose_hpc.stages import Stages
    from rose_hpc.tries import Tries
    from rose_hpc.workflow import Criterion, Environment, Work, Workflow

    nodes = -(-ranks // CORES)
    collect_seldom()  # as a driver does

    class Backend(AttemptBackend):
        async def _open(self) -> None:
            joined = asyncio.Event()

            def on_join(client: Any) -> None:
                self.pool.add(client, client.cores, client.gpus)
                if self.pool.width >= nodes * CORES:
                    joined.set()

            self.hub = Hub(folder / "keys.json", on_join, lambda client, why: self.pool.remove(client))
            await self.hub.start({"cores_per_node": CORES, "path": [], "environment": {}})
            argv = [sys.executable, __file__, "--stand-in", str(folder / "keys.json"), str(nodes)]
            self.process = await asyncio.create_subprocess_exec(*argv)
            await asyncio.wait_for(joined.wait(), 300)

        async def _close(self) -> None:
            await self.hub.close()
            await self.process.wait()

    true = Work(argv=("true",))
    environments = tuple(Environment(f"env_{n}", true, {"n": n}, shard=shards or None) for n in range(ranks))
    criterion = Criterion(true, "MODEL_REWARD", ">", 2.0)
    workflow = Workflow("scale", folder, environments, true, criterion, max_iterations=iterations)
    run = rundir.create("scale", folder / "run")
    backend = await Backend("stand-in")
    asyncflow = await WorkflowEngine.create(backend, work_dir=str(run.scratch))
    session = Session(run)
    session.begin(run_facts(workflow, 0), engine="stand-in")
    engine = Engine(asyncflow, run.scratch, run.owner, session.ownership.epoch)
    loop = Loop(Stages(Tries(session, workflow, engine)))
    cpu, wall, memory = [], [], []
    try:
        begun = time.process_time(), time.perf_counter()
        async for _ in loop.iterations():
            now = time.process_time(), time.perf_counter()
            cpu.append(now[0] - begun[0])
            wall.append(now[1] - begun[1])
            memory.append(resident_mb())
            begun = now
    finally:
        await engine.close()
        await asyncflow.shutdown()
        session.close()
    files = sum(len(names) for _, _, names in os.walk(run.path))
    return {
        "ranks": ranks,
        "nodes": nodes,
        "shards": shards,
        "iterations": iterations,
        "cpu_us": statistics.median(cpu[1:]) / ranks * 1e6,
        "wall_s": statistics.median(wall[1:]),
        "memory_mb": memory[-1],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "growth_kb": (memory[-1] - memory[1]) * 1024 / ranks / max(1, len(memory) - 2),
        "journal_bytes": run.journal.stat().st_size / ranks / iterations,
        "files": files,
        "files_each": files / ranks / iterations,
    }


def resident_mb() -> float:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(ranks: int, iterations: int, shards: bool) -> dict[str, Any]:
    """One point, in a process of its own."""
    argv = [sys.executable, __file__, "--one", str(ranks), str(iterations), str(int(shards))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    point: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return point


def draw(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Curves over ranks, of functions that leave no shards and of environments that do."""
    from matplotlib.figure import Figure

    what = {
        "cpu_us": "driver's CPU, microseconds a rank and iteration",
        "wall_s": "a round, seconds",
        "memory_mb": "driver's memory, MB",
        "journal_bytes": "journal, bytes a rank and iteration",
    }
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, what.items(), strict=True):
        for shards in (False, True):
            line = [(point["ranks"], point[key]) for point in points if point["shards"] == bool(shards)]
            axes.plot(*zip(*line, strict=True), "o-", label="with shards" if shards else "without shards")
        axes.set(title=title, xlabel="ranks", xscale="log", ylim=(0, None))
        axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256, 1024, 4096, 10_000])
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plot", type=lambda name: Path(name).resolve(), metavar="FILE", help="draw the curves")
    parser.add_argument("--one", nargs=3)
    parser.add_argument("--stand-in", nargs=2)
    options = parser.parse_args()
    if options.stand_in:
        stand_in(Path(options.stand_in[0]), int(options.stand_in[1]))
        return
    if options.one:
        ranks, iterations, shards = map(int, options.one)
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(asyncio.run(drive(ranks, iterations, bool(shards), Path(name)))))
        return
    points = []
    print("shards   ranks  CPU/rank  a round   memory  growth/rank  journal/rank   files")
    for shards, ranks in itertools.product((False, True), (64, 1024) if options.quick else options.ranks):
        point = measure(ranks, options.iterations, bool(shards))
        points.append(point)
        verdict = "" if ranks != 1024 else "   ok" if point["cpu_us"] <= GOAL_US else f"   MISSED: goal {GOAL_US:g} us"
        print(
            "{shards!s:<6}{ranks:8d}{cpu_us:7.0f} us{wall_s:7.2f} s{memory_mb:6.0f} MB{growth_kb:10.2f} kB"
            "{journal_bytes:12.0f} B{files:8d}".format(**point)
            + verdict
        )
    if options.plot:
        draw(points, options.plot)


if __name__ == "__main__":
    main()
