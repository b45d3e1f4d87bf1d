"""The embedded engine's supervisor: one that hangs, or dies, is found and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from hub_nodes import until

from rose_hpc.errors import EngineError
from rose_hpc.execution import local
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.local import EmbeddedExecutionBackend


def command(folder: Path, name: str, script: str) -> Attempt:
    return Attempt(id=name, kind="command", argv=("sh", "-c", script), cwd=str(folder))


async def pid_of(backend: EmbeddedExecutionBackend, folder: Path) -> int:
    """Its supervisor's, as a command tells it."""
    outcome, _ = await backend.run(command(folder, "who", "echo $PPID"))
    return int(outcome.stdout)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_hung_or_dead_supervisor_is_replaced(number, tmp_path, monkeypatch):
    """What ran is lost, loudly and soon, with all its processes; what comes next runs under another supervisor."""
    monkeypatch.setattr(local, "PING_S", 0.1)
    monkeypatch.setattr(local, "SILENCE_S", 0.5)

    async def main() -> None:
        backend = await EmbeddedExecutionBackend(2)
        first = await pid_of(backend, tmp_path)
        running = asyncio.create_task(backend.run(command(tmp_path, "a", "echo $$ > up; exec sleep 300")))
        await until(lambda: (tmp_path / "up").exists() and (tmp_path / "up").read_text())
        os.kill(first, number)
        outcome, _ = await running
        assert (outcome.ok, outcome.reason) == (False, "lost")
        assert ("has not been heard of" in outcome.message) == (number == signal.SIGSTOP)
        assert backend.has_nodes
        assert await pid_of(backend, tmp_path) != first
        group = int((tmp_path / "up").read_text())
        await until(lambda: not Path(f"/proc/{group}").exists())
        await backend.shutdown()

    asyncio.run(main())


def test_a_busy_supervisor_is_not_a_hung_one(tmp_path, monkeypatch):
    """However long nothing ends, a supervisor that answers is left alone."""
    monkeypatch.setattr(local, "PING_S", 0.05)
    monkeypatch.setattr(local, "SILENCE_S", 5.0)

    async def main() -> None:
        backend = await EmbeddedExecutionBackend(1)
        outcome, _ = await backend.run(command(tmp_path, "a", "sleep 1; echo well"))
        assert (outcome.ok, outcome.stdout) == (True, "well\n")
        await backend.shutdown()

    asyncio.run(main())


def test_an_engine_whose_supervisors_keep_dying_fails(tmp_path):
    """There is an end to starting others: then everything fails with what it may be."""

    async def main() -> None:
        backend = await EmbeddedExecutionBackend(1)
        kill = command(tmp_path, "a", "kill -KILL $PPID; sleep 300")
        reasons = [(await backend.run(kill))[0].reason for _ in range(6)]
        assert reasons == ["lost"] * 6
        with pytest.raises(EngineError, match="died 6 times; is there too little memory"):
            await backend.run(kill)
        assert not backend.has_nodes
        await backend.shutdown()

    asyncio.run(main())
