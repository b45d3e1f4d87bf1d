"""A run is one task of the workflow engine, which keeps the last word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import projects
import pytest
from radical.asyncflow import WorkflowEngine

from rose_hpc import EmbeddedExecutionBackend
from rose_hpc.errors import EngineError
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.engine import Engine


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Any, Engine]]:
    """A workflow engine on a backend of ours, and a run's engine on it."""
    asyncflow = await WorkflowEngine.create(await EmbeddedExecutionBackend(), work_dir=str(folder))
    try:
        yield asyncflow, Engine(asyncflow, folder, folder / "owner.json", 0)
    finally:
        await asyncflow.shutdown()


def command(folder: Path, name: str, script: str) -> Attempt:
    """An attempt of a shell script."""
    return Attempt(id=name, kind="command", argv=("sh", "-c", script), cwd=str(folder), log=str(folder / "log"))


def test_attempts_are_no_tasks_of_the_engine(tmp_path: Path) -> None:
    """However many attempts there are, the engine sees one task, which ends when the run lets go of it."""

    async def main() -> None:
        async with running(tmp_path) as (asyncflow, engine):
            for number in range(20):
                outcome, _ = await engine.run(command(tmp_path, f"a{number}", "echo done"))
                assert (outcome.ok, outcome.stdout) == (True, "done\n")
            ((uid, component),) = asyncflow.components.items()
            assert not component["future"].done()
            await engine.close()
            assert component["future"].state == "DONE", uid
            await engine.close()

    asyncio.run(main())


def test_the_engine_ends_what_runs(tmp_path: Path) -> None:
    """Shut down, it ends every attempt with all its processes; who waits is told, and who comes later is refused."""

    async def main() -> None:
        async with running(tmp_path) as (asyncflow, engine):
            sleeps = [command(tmp_path, name, f"touch {name}; sleep 999") for name in ("a", "b")]
            work = [asyncio.create_task(engine.run(attempt)) for attempt in sleeps[: engine.cores]]
            await asyncio.to_thread(projects.wait_for, (tmp_path / "a").exists)
            await asyncflow.shutdown()
            outcomes = await asyncio.gather(*work, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            with pytest.raises(EngineError, match="was shut down"):
                await engine.run(sleeps[0])
            await engine.close()

    asyncio.run(main())
    assert projects.processes_of(tmp_path) == []


def test_a_cancelled_task_ends_its_attempts_alone(tmp_path: Path) -> None:
    """The engine cancels a run's task: its attempts end; the run's next attempt is in a new task."""

    async def main() -> None:
        async with running(tmp_path) as (asyncflow, engine):
            work = asyncio.create_task(engine.run(command(tmp_path, "a", "touch a; sleep 999")))
            await asyncio.to_thread(projects.wait_for, (tmp_path / "a").exists)
            ((_, component),) = asyncflow.components.items()
            component["future"].cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            outcome, _ = await engine.run(command(tmp_path, "b", "echo again"))
            assert outcome.stdout == "again\n"
            assert len(asyncflow.components) == 2
            await engine.close()

    asyncio.run(main())


def test_cancelling_one_attempt_leaves_the_others(tmp_path: Path) -> None:
    """A cancelled attempt has ended when its cancellation is known; the task goes on."""

    async def main() -> None:
        async with running(tmp_path) as (asyncflow, engine):
            work = asyncio.create_task(engine.run(command(tmp_path, "a", "touch a; sleep 999")))
            await asyncio.to_thread(projects.wait_for, (tmp_path / "a").exists)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert "cancelled after" in (tmp_path / "log").read_text()
            assert (await engine.run(command(tmp_path, "b", "true")))[0].ok
            assert len(asyncflow.components) == 1
            await engine.close()

    asyncio.run(main())
