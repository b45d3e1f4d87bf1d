"""The embedded engine: everything on this machine, through one supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from rose_hpc.cores import available_cores
from rose_hpc.errors import EngineError
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.backend import AttemptBackend
from rose_hpc.execution.child import GRACE_S, python_argv
from rose_hpc.execution.client import Answer, Client, OnStart
from rose_hpc.execution.frames import Unpacker

log = logging.getLogger(__name__)


class LocalSupervisor(Client, asyncio.Protocol):
    """A supervisor that is our child, at the other end of a socket pair: when we are gone, so is its socket."""

    def __init__(self) -> None:
        super().__init__()
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._unpacker = Unpacker()
        self._why = "its supervisor died"

    async def start(self) -> None:
        """Start it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *python_argv("rose_hpc.execution.rank"),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        self.post({"op": "hello", "path": search_path(), "service": True})

    async def run(self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None) -> Answer:
        """As :meth:`Client.run`.

        Raises:
            EngineError: when it is not running.
        """
        if self._transport is None or self.gone.is_set():
            raise EngineError(
                "the supervisor of this engine is not running", hint="start a new engine, and resume the run"
            )
        return await super().run(attempt, payload, on_start)

    def _write(self, data: bytes) -> bool:
        if self._transport is None or self._transport.is_closing():
            return False  # whoever waits has been told
        self._transport.write(data)
        return True

    def data_received(self, data: bytes) -> None:
        """Asyncio's: it said something."""
        for message, payload in self._unpacker.feed(data):
            self.handle(message, payload)

    def connection_lost(self, _error: Exception | None) -> None:
        """Asyncio's: it has gone, or was told to."""
        for group in self.groups.values():  # what it had started and can end no more
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, 9)
        self.lose(self._why)

    async def close(self) -> None:
        """End it and all it started, in bounded time; idempotent."""
        process, self._process = self._process, None
        if process is None or self._transport is None:
            return
        self._why = "the engine was shut down"
        self._transport.close()  # it sees the end of its socket, and ends everything
        try:
            await asyncio.wait_for(process.wait(), GRACE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        self.lose(self._why)


class EmbeddedExecutionBackend(AttemptBackend):
    """An asyncflow execution backend for this machine.

    Args:
        max_concurrent: how many ranks run at once, whatever their cores; None: as many as fit on the cores there are.
        name: the name asyncflow knows the backend by.

    Use it as ``asyncflow = await WorkflowEngine.create(await EmbeddedExecutionBackend())``.
    """

    def __init__(self, max_concurrent: int | None = None, name: str = "embedded") -> None:
        super().__init__(name, max_concurrent)
        self._supervisor = LocalSupervisor()

    async def _open(self) -> None:
        self._supervisor = LocalSupervisor()
        await self._supervisor.start()
        self.pool.add(self._supervisor, available_cores())

    async def _close(self) -> None:
        self.pool.remove(self._supervisor)
        await self._supervisor.close()


def search_path() -> list[str]:
    """Where this process finds modules, for the processes that call its functions."""
    return [entry or str(Path.cwd()) for entry in sys.path]
