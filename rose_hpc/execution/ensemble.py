"""The attempts of one run behind one task of the workflow engine, which is submitted once and lasts as long as the run.

radical.asyncflow's loop costs 11 ms for every task, and keeps every task for ever. On our own backends a run is
therefore one task, and its attempts go past the engine to supervisors that are already running. The engine keeps the
last word: when it cancels the task, or is shut down, every attempt ends.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

from rose_hpc.errors import EngineError, RoseHpcError
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.client import Answer, OnStart


class Carrier(Protocol):
    """What carries attempts out: a backend of ours."""

    async def run(self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None) -> Answer:
        """Carry out one attempt."""


class Ensemble:
    """One run on one engine. Its task's description is ``{"ensemble": self}``: the backend calls :meth:`serve`.

    Args:
        asyncflow: the engine.
        name: what the engine calls the task.
    """

    def __init__(self, asyncflow: Any, name: str) -> None:
        self._asyncflow = asyncflow
        self._name = name
        self._backend: asyncio.Future[Carrier] | None = None  # done once a backend serves us
        self._future: Any = None  # asyncflow's, of the task
        self._running: set[asyncio.Task[Any]] = set()  # who carries out an attempt
        self._left = asyncio.Event()
        self._released = asyncio.Event()

    async def run(self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None) -> Answer:
        """Carry out one attempt.

        Raises:
            EngineError: when the engine takes no task, or failed.
            asyncio.CancelledError: when the engine ended the task; the attempt has been ended.
        """
        backend = await self._served()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        self._running.add(task)
        try:
            return await backend.run(attempt, payload, on_start)
        finally:
            self._running.discard(task)
            self._left.set()

    async def _served(self) -> Carrier:
        """The backend; the first who asks submits the task."""
        if self._backend is None:
            self._backend = asyncio.get_running_loop().create_future()

            async def task() -> str:
                return "rose_hpc ensemble"  # never executed: the backend serves us instead

            task.__name__ = self._name
            self._future = self._asyncflow.executable_task(task)(task_description={"ensemble": self})
        backend, future = self._backend, self._future
        if not backend.done():
            await asyncio.wait([backend, future], return_when=asyncio.FIRST_COMPLETED)
        if backend.done():
            return backend.result()
        self._backend = None  # who comes next may try again
        error = None if future.cancelled() else future.exception()
        if isinstance(error, RoseHpcError):
            raise error
        raise EngineError(f"the workflow engine took no task: {error or 'it was cancelled'}") from error

    async def serve(self, backend: Carrier) -> None:
        """Be the task, on ``backend``, until the run lets go; cancelled, end every attempt first."""
        if self._backend is None or self._backend.done():
            return  # nobody waits for this one any more
        self._backend.set_result(backend)
        try:
            await self._released.wait()
        finally:
            self._backend = None
            for task in self._running:
                task.cancel()
            while self._running:
                self._left.clear()
                with suppress(asyncio.CancelledError):  # told again, it waits all the same: each ends in bounded time
                    await self._left.wait()

    async def close(self) -> None:
        """Let the task end; idempotent."""
        self._released.set()
        if self._future is not None:
            await asyncio.wait([self._future])
