"""Python programs with decorators, as users write them: no main guard, run from a folder no shell would survive."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import projects

_FRAME = """\
import asyncio, json, os, pathlib, signal, sys
from radical.asyncflow import WorkflowEngine
import rose_hpc
from rose_hpc import (
    GREATER_THAN_THRESHOLD, LearnerConfig, ParallelExperience, ParallelReinforcementLearner,
    SequentialReinforcementLearner, TaskConfig, TrackerBase
)
{top}

def tell(state):
    print("STATE", json.dumps(state.to_dict()), flush=True)

def once(name):
    "True the first time."
    first = not os.path.exists(name)
    open(name, "w").close()
    return first

def kill_the_driver():
    owner = json.loads(pathlib.Path(os.environ["ROSE_HPC_RUN"], "owner.json").read_text())
    os.kill(owner["pid"], signal.SIGKILL)

async def main():
    asyncflow = await WorkflowEngine.create({backend})
    try:
{body}
    finally:
        await asyncflow.shutdown()

asyncio.run(main())
"""
EMBEDDED = "await rose_hpc.execution_backend()"
#: asyncflow's own: it knows nothing of us, and runs functions in threads
FOREIGN = "await LocalExecutionBackend()"

#: two functions that write shards and give values, an update that takes them, a check that gives iteration + 1
FUNCTIONS = """
    pe = ParallelExperience(asyncflow, seed=5)

    @pe.environment_task(name="a", as_executable=False)
    def a(*args, scale=1.0):
        task = rose_hpc.current_task()
        with task.shard() as shard:
            shard.append(observation=task.rng.random(2), reward=scale)
        return {"a": task.iteration, "scale": scale}

    @pe.environment_task(name="b", as_executable=False)
    async def b(*args, scale=1.0):
        await asyncio.sleep(0)
        return [rose_hpc.current_task().environment, 2]

    @pe.update_task(as_executable=False)
    def update(from_a, from_b):
        task = rose_hpc.current_task()
        assert from_b == ["b", 2], from_b
        (task.policy / "weights").write_text(repr(task.bank()["observations"].tolist()))
        return {"loss": 1 / (1 + from_a["a"])}

    @pe.as_stop_criterion(metric_name="MODEL_REWARD", threshold=THRESHOLD, as_executable=False)
    def check(updated):
        return {"metric_value": rose_hpc.current_task().iteration + 1, "checked": updated["loss"]}
"""


def write(folder: Path, *body: str, top: str = "", backend: str = EMBEDDED, name: str = "program.py") -> Path:
    """A program whose main does ``body``, whose parts may each be indented as they like."""
    text = "\n".join(textwrap.dedent(part).strip("\n") for part in body)
    program = folder / name
    program.write_text(_FRAME.format(top=textwrap.dedent(top), body=textwrap.indent(text, " " * 8), backend=backend))
    return program


def without_cleaning_up(program: Path) -> Path:
    """The same program, which leaves the engine to whoever ends the event loop."""
    text = program.read_text()
    (cleaning,) = [line for line in text.splitlines() if line.endswith("await asyncflow.shutdown()")]
    program.write_text(text.replace(cleaning, cleaning.replace("await asyncflow.shutdown()", "pass")))
    return program


def states(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What the program told of its states."""
    return [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("STATE ")]


def run_of(folder: Path) -> Path:
    """The one run in the folder."""
    (run,) = (folder / "runs").iterdir()
    return run


run = projects.run_program
