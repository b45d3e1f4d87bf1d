"""A disk that is slow or refuses: what programs and people see of files that are brought to it beside the work."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path
from typing import Any

import projects
import pytest

#: a program on a disk that takes $SECONDS for what ends in $SLOW, and refuses what ends in $REFUSED
PROGRAM = """
    import asyncio, os, pathlib, sys, time
    from radical.asyncflow import WorkflowEngine
    import rose_hpc, rose_hpc.errors
    from rose_hpc import publishing

    def sync(path, really=publishing.fsync_path):
        if str(path).endswith(os.environ.get("SLOW", "nothing")):
            open("syncing", "w").close()
            time.sleep(float(os.environ["SECONDS"]))
        if str(path).endswith(os.environ.get("REFUSED", "nothing")):
            raise OSError(5, "Input/output error")
        really(path)

    def drop(*arguments, really=publishing.drop):
        time.sleep(float(os.environ.get("DROPPING", "0")))
        really(*arguments)

    def name(files, really=publishing.name_all):
        if any(os.environ.get("UNNAMED", "nothing") in str(target) for target in files.values()):
            raise rose_hpc.errors.RunError("no such name")
        return really(files)

    publishing.fsync_path, publishing.drop, publishing.name_all = sync, drop, name

    async def main(mode):
        asyncflow = await WorkflowEngine.create(await rose_hpc.EmbeddedExecutionBackend())
        pe = rose_hpc.ParallelExperience(asyncflow, seed=3, run_dir="r")

        def experience(*values):
            task = rose_hpc.current_task()
            end = time.monotonic() + 30
            first = task.environment == "late" and task.iteration == 0
            while first and not os.path.exists("r/iter-0000/shards/early.h5"):
                assert time.monotonic() < end
            with task.shard() as shard:
                shard.append(observation=[1.0, 2.0], reward=1.0)
            return {"name": task.environment}

        pe.environment_task(name="early", as_executable=False)(experience)
        pe.environment_task(name="late", as_executable=False)(experience)

        @pe.update_task(as_executable=False)
        def update(*values):
            task = rose_hpc.current_task()
            (task.policy / "weights").write_text("x")
            open("updated", "a").close()
            return {"loss": 1}

        @pe.as_stop_criterion(metric_name="MODEL_REWARD", threshold=15, operator=">")
        async def check(value):
            if mode == "mutate":
                value["loss"] = object()
            if mode == "lock":
                return "sh -c 'touch $ROSE_HPC_POLICY/lock; sleep 0.1; rm $ROSE_HPC_POLICY/lock; echo 1'"
            return "echo 1"

        if mode == "crash":
            learning = asyncio.create_task(pe.learn(max_iter=2))
            while not os.path.exists("syncing"):
                await asyncio.sleep(0.005)
            raise ValueError("the program's own error")
        if mode == "leave":
            async for state in pe.start(max_iter=3):
                break
            return
        try:
            await pe.learn(max_iter=2)
        finally:
            await asyncflow.shutdown()

    asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def program(folder: Path) -> Path:
    path = folder / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def told(program: Path) -> list[Any]:
    """What the journal says of each stage and rank, and how it ends."""
    records = projects.records(program.parent / "r")
    return [
        r.get("environment") or r.get("stage") or r["state"] for r in records if r["kind"] in ("rank", "stage", "end")
    ]


def test_a_program_that_breaks_down_has_its_records(program: Path) -> None:
    """The event loop ends, with everything in it, while a policy is brought to the disk: what was done is recorded."""
    done = projects.run_program(program, "crash", SLOW="iter-0000/policy", SECONDS="0.5")
    assert "the program's own error" in done.stderr
    said = told(program)
    assert said[:5] == ["early", "late", "collect", "merge", "update"]
    assert said[-1] == "stopped"


def test_a_program_that_leaves_while_shards_are_removed(program: Path) -> None:
    """Its event loop ends while a thread removes them; that the run was left is recorded."""
    done = projects.run_program(program, "leave", DROPPING="0.3")
    assert done.returncode == 0, done.stderr
    assert told(program)[-1] == "stopped"


def test_records_hold_what_tasks_returned(program: Path) -> None:
    """A value that the program changes after it was returned, even to what no record holds, is recorded as it was."""
    done = projects.run_program(program, "mutate", SLOW="iter-0000/policy", SECONDS="0.5")
    assert done.returncode == 0, done.stderr
    (first, _) = projects.records(program.parent / "r", "stage", stage="update")
    assert first["value"] == {"loss": 1}


def test_a_check_may_use_the_folder_while_it_is_synced(program: Path) -> None:
    """Files that a check makes there and removes are none of the policy's."""
    done = projects.run_program(program, "lock", SLOW="iter-0000/policy/weights", SECONDS="0.3")
    assert done.returncode == 0, done.stderr
    assert told(program)[-1] == "max_iterations"


def test_a_refusal_is_seen_at_once(program: Path) -> None:
    """Shards that cannot be brought to the disk stop the run before anything is made of them."""
    done = projects.run_program(program, "plain", REFUSED="iter-0000/shards")
    assert done.returncode == 1
    assert "cannot bring" in done.stderr
    assert not (program.parent / "updated").exists()
    assert told(program)[-1] == "failed"


def test_a_shard_that_fails_drops_no_other(program: Path) -> None:
    """One that can have no name stops the run; the record of another, which waits for the disk, is written."""
    done = projects.run_program(program, "plain", UNNAMED="late.h5", SLOW="iter-0000/shards", SECONDS="0.5")
    assert done.returncode == 1
    assert "no such name" in done.stderr
    assert told(program) == ["early", "failed"]


def test_an_interrupted_driver_does_not_wait_for_ever(folder: Path) -> None:
    """A disk that hangs: the run is left within half a minute, and says that it was stopped."""
    program = folder / "slow.py"
    projects.write_project(folder)
    text = """
        import time
        from rose_hpc import loop, publishing
        from rose_hpc.cli import main

        def sync(path, really=publishing.fsync_path):
            if path.name == "bank.h5":
                open("syncing", "w").close()
                time.sleep(8)
            really(path)

        publishing.fsync_path, loop._DISK_S = sync, 0.2
        main()
    """
    program.write_text(textwrap.dedent(text))
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=folder, program=program.name) as driver:
        projects.wait_for((folder / "syncing").exists)
        driver.send_signal(signal.SIGTERM)
        said, _ = driver.communicate(timeout=60)
    (end,) = projects.records(folder / "r", "end")
    assert end["state"] == "stopped"
    assert not projects.records(folder / "r", "stage", stage="merge")
    assert "what was done last has no record, and is done again by whoever goes on: the disk has not taken it" in said
    done = projects.rose_hpc("resume", folder / "r")
    assert done.returncode == 0, done.stderr
