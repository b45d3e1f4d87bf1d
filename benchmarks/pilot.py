"""The pilot engine beside what a user would have instead, in one run on this machine.

An iteration of five trivial environments, update and check: `rose-hpc run --engine pilot`; the same commands in a loop
like ROSE's, each one task of the same kind of pilot; and, with --rose, ROSE itself (its decorators repaired) on
rhapsody's backend. The start of a pilot, to the end of a first task, beside a bare program of radical.pilot.

python benchmarks/pilot.py [--iterations 10] [--rose ROSE_CHECKOUT --rose-python PYTHON_WITH_RHAPSODY]
python benchmarks/pilot.py --slurm     256 ranks that import h5py over 32 nodes, beside srun (needs root and Slurm)
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
import textwrap
import time
from pathlib import Path
from typing import Any

from loop import write_project  # the same commands as in the benchmark of the loop

TRIVIAL = ("env", "ROSE_HPC_BANK=ready.h5", "ROSE_HPC_POLICY=policy")
BARE = """
    import os, sys, time
    began = time.perf_counter()
    import radical.pilot as rp

    session = rp.Session()
    try:
        pilots, tasks = rp.PilotManager(session), rp.TaskManager(session)
        cores = len(os.sched_getaffinity(0))
        tasks.add_pilots(pilots.submit_pilots(rp.PilotDescription(
            {"resource": "local.localhost", "runtime": 10, "cores": cores, "exit_on_error": False}
        )))
        tasks.submit_tasks(rp.TaskDescription({"executable": "/bin/true"}))
        tasks.wait_tasks(timeout=120)
        print("SECONDS", time.perf_counter() - began, flush=True)
    finally:
        session.close(download=False)
"""
OURS = """
    import asyncio, sys, time
    began = time.perf_counter()
    from radical.asyncflow import WorkflowEngine
    from rose_hpc import RadicalExecutionBackend

    async def main():
        flow = await WorkflowEngine.create(await RadicalExecutionBackend({"runtime": 10}))

        @flow.executable_task
        async def task():
            return "/bin/true"

        await task()
        print("SECONDS", time.perf_counter() - began, flush=True)
        await flow.shutdown()

    asyncio.run(main())
"""
ROSE = """
    import asyncio, json, os, sys, time
    from radical.asyncflow import WorkflowEngine
    from rhapsody.backends import RadicalExecutionBackend
    from rose.rl import reinforcement_learner as rl

    commands, iterations = json.loads(sys.argv[1]), int(sys.argv[2])

    async def main():
        cores = len(os.sched_getaffinity(0))
        engine = await RadicalExecutionBackend({"runtime": 10, "resource": "local.localhost", "cores": cores})
        flow = await WorkflowEngine.create(engine)
        learner = rl.ParallelExperience(flow)

        def maker(line):
            async def task(*args):
                return line
            return task

        # Its decorator for environments is shadowed by an attribute of the same name: what it would have done
        for number, line in enumerate(commands[:-2]):
            task = {"func": maker(line), "args": (), "kwargs": {}, "decor_kwargs": {}}
            learner.environment_functions[f"env_{number}"] = task
        learner.update_task(maker(commands[-2]))
        stop = learner.as_stop_criterion(metric_name="MODEL_REWARD", threshold=1e9, operator=">")
        stop(maker(commands[-1]))
        last = time.perf_counter()
        async for state in learner.start(max_iter=iterations):
            now = time.perf_counter()
            print("SECONDS", now - last, flush=True)
            last = now
        await flow.shutdown()

    try:
        asyncio.run(main())
    finally:
        os._exit(0)  # its other processes may let it hang here for ever
"""
#: a rival that says nothing for so long hangs
PATIENCE_S = 180


def script(text: str, folder: Path, *arguments: str, python: str = sys.executable, **env: str) -> list[float]:
    """Run a program in a folder of its own; the seconds it tells."""
    program = folder / "program.py"
    program.write_text(textwrap.dedent(text))
    # radical.pilot finds its parts by PATH, and writes where it stands
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {
        "PATH": path,
        "PWD": str(folder),
        "VIRTUAL_ENV": str(Path(python).parents[1]),
        "RADICAL_BASE": str(folder),
        **env,
    }
    argv, said = [python, str(program), *arguments], folder / "said"
    with said.open("w") as output:
        done = subprocess.Popen(argv, cwd=folder, env={**os.environ, **variables}, stdout=output, stderr=output)
        try:
            done.wait(PATIENCE_S)
        finally:
            done.kill()
            done.wait()
    told = [float(line.split()[1]) for line in said.read_text().splitlines() if line.startswith("SECONDS")]
    if not told:
        raise SystemExit(said.read_text()[-2000:])
    return told


def lines(folder: Path, commands: list[list[str]]) -> list[str]:
    """The commands as lines for a backend that knows no working folder and no shards."""
    inner = "cd {} && ROSE_HPC_ENVIRONMENT=rival{} ROSE_HPC_SHARD=copy-{}.h5 exec {}"
    texts = [inner.format(shlex.quote(str(folder)), i, i, shlex.join(argv)) for i, argv in enumerate(commands)]
    return [shlex.join([*TRIVIAL, "sh", "-c", text]) for text in texts]


def run_ours(folder: Path) -> float:
    """One iteration of `rose-hpc run --engine pilot`, the median."""
    argv = [sys.executable, "-m", "rose_hpc", "run", "config.toml", "--engine", "pilot", "--run-dir", "run"]
    done = subprocess.run(
        [*argv, "--set", 'pilot.resource="local.localhost"'], cwd=folder, capture_output=True, text=True
    )
    if done.returncode != 3:
        raise SystemExit(done.stderr)
    records = [json.loads(line) for line in (folder / "run/journal.jsonl").read_text().splitlines()]
    closed = [record["time"] for record in records if record["kind"] == "checkpoint"]
    return statistics.median(b - a for a, b in itertools.pairwise(closed))


async def task_per_stage(commands: list[str], rounds: int) -> list[float]:
    """A loop like ROSE's: one task of a pilot for each environment, for update and for check."""
    from radical.asyncflow import WorkflowEngine

    from rose_hpc.execution.pilot_tasks import PilotTasks

    flow = await WorkflowEngine.create(await PilotTasks({"runtime": 10}))

    @flow.executable_task
    async def task(line: str) -> str:
        return line

    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        await asyncio.gather(*[task(line) for line in commands[:-2]])
        await task(commands[-2])
        await task(commands[-1])
        seconds.append(time.perf_counter() - began)
    await flow.shutdown()
    return seconds


def iterations(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = write_project(folder, 5, options.iterations)
        plain = lines(folder, commands)
        ours = run_ours(folder)
        tasks = statistics.median(asyncio.run(task_per_stage(plain, options.iterations))[1:])
        table = [("rose-hpc run --engine pilot", ours), ("a task of the pilot for each stage", tasks)]
        if options.rose:
            work = folder / "rose"
            work.mkdir()
            python = str((options.rose_python or Path(sys.executable)).absolute())
            arguments = (json.dumps(plain), str(options.iterations))
            told = script(ROSE, work, *arguments, python=python, PYTHONPATH=str(options.rose.absolute()))
            table.append(("ROSE on rhapsody's backend", statistics.median(told[1:])))
        print(f"one iteration of 5 trivial environments, update, check; median of {options.iterations}")
        for what, seconds in table:
            print(f"  {what:<44}{seconds * 1e3:7.0f} ms   {seconds / ours:6.2f}x")
        starts: dict[str, list[float]] = {"a bare program of radical.pilot": [], "rose_hpc.RadicalExecutionBackend": []}
        for i in range(options.starts):
            for (what, told), text in zip(starts.items(), (BARE, OURS), strict=True):
                place = folder / f"{i}-{len(what)}"
                place.mkdir()
                told += script(text, place)
        print(f"start of a pilot to the end of its first task; median of {options.starts}")
        bare = statistics.median(starts["a bare program of radical.pilot"])
        for what, seconds_of in starts.items():
            print(f"  {what:<44}{statistics.median(seconds_of):7.1f} s    {statistics.median(seconds_of) / bare:6.2f}x")


WIDE = """
    import asyncio, json, os, pathlib, sys, time
    import rose_hpc
    from rose_hpc.execution.attempt import Attempt

    async def main(ranks, python):
        began = time.perf_counter()
        backend = await rose_hpc.execution_backend()
        start = time.perf_counter() - began
        async def run(i):
            argv = (python, "-c", "import h5py")
            return (await backend.run(Attempt(id=str(i), kind="command", argv=argv, cwd=os.getcwd())))[0]
        seconds = []
        for round in range(2):
            began = time.perf_counter()
            outcomes = await asyncio.gather(*[run(f"{round}.{i}") for i in range(ranks)])
            seconds.append(time.perf_counter() - began)
        answer = {"start": start, "seconds": seconds, "ok": all(o.ok for o in outcomes),
                  "nodes": len({o.node for o in outcomes})}
        pathlib.Path("answer.json").write_text(json.dumps(answer))
        await backend.shutdown()

    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


def wide(nodes: int = 32, ranks: int = 256) -> None:
    """All ranks at once over many nodes, in one job, beside a bare srun in the same job."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    import slurm_cluster

    each = ranks // nodes
    python = os.path.realpath(sys.executable)  # no shim: it would be started 256 times
    with tempfile.TemporaryDirectory() as name, slurm_cluster.running(nodes=nodes, cpus=each, memory=4000) as cluster:
        folder = Path(name)
        (folder / "wide.py").write_text(textwrap.dedent(WIDE))
        site = str(Path(next(p for p in sys.path if p.endswith("site-packages"))))
        job = f"""#!/bin/bash
            export PYTHONPATH={shlex.quote(site)}
            for i in 1 2; do
                began=$(date +%s.%N)
                srun --nodes={nodes} --ntasks={ranks} --mem=0 {shlex.quote(python)} -c 'import h5py' || exit
                echo "$(date +%s.%N) - $began" | awk '{{print $1 - $3}}' >> srun.txt
            done
            exec {shlex.quote(sys.executable)} wide.py {ranks} {shlex.quote(python)}
        """
        (folder / "job.sh").write_text(textwrap.dedent(job))
        options = [f"--chdir={folder}", f"--nodes={nodes}", f"--ntasks-per-node={each}", "--time=20", "--wait"]
        done = cluster.call("sbatch", *options, "--output=job.out", str(folder / "job.sh"), timeout=1200)
        if done.returncode:
            out = folder / "job.out"
            raise SystemExit(done.stderr + (out.read_text()[-3000:] if out.exists() else ""))
        answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
        bare = min(map(float, (folder / "srun.txt").read_text().split()))
        print(f"{ranks} ranks that import h5py over {nodes} nodes ({answer['nodes']} used, all ok: {answer['ok']})")
        print(f"  {'srun':<44}{bare:7.1f} s")
        ours = min(answer["seconds"])
        print(f"  {'supervisors of the pilot, one launch':<44}{ours:7.1f} s    {ours / bare:6.2f}x")
        print(f"  {'(the pilot and its supervisors have started)':<44}{answer['start']:7.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--starts", type=int, default=3, help="how often each kind of pilot is started")
    parser.add_argument("--rose", type=Path, help="a checkout of ROSE, to run its loop too")
    parser.add_argument("--rose-python", type=Path, help="an interpreter that has ROSE's dependencies and rhapsody-py")
    parser.add_argument("--slurm", action="store_true", help="many ranks on a Slurm of this machine, and nothing else")
    options = parser.parse_args()
    wide() if options.slurm else iterations(options)


if __name__ == "__main__":
    main()
