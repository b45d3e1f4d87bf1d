"""The embedded engine: everything on this machine, through one supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rose_hpc.cores import available_cores
from rose_hpc.errors import EngineError
from rose_hpc.execution.backend import AttemptBackend
from rose_hpc.execution.child import GRACE_S, python_argv
from rose_hpc.execution.client import Client
from rose_hpc.execution.frames import pack, read_frame

log = logging.getLogger(__name__)


class LocalSupervisor(Client):
    """A supervisor that is our child, at the other end of a socket pair: when we are gone, so is its socket."""

    def __init__(self) -> None:
        super().__init__()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

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
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._reading = asyncio.create_task(self._read(reader), name="rose_hpc supervisor")
        await self._send({"op": "hello", "path": search_path(), "service": True})

    async def _send(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        if self._writer is None or self._reading is None or self._reading.done():
            raise EngineError(
                "the supervisor of this engine is not running", hint="start a new engine, and resume the run"
            )
        self._writer.write(pack(message, payload))
        with suppress(ConnectionError):  # the reading side sees it too, and says so to everyone who waits
            await self._writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while (frame := await read_frame(reader)) is not None:
            self.handle(*frame)
        for group in self.groups.values():  # what it had started and can end no more
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, 9)
        self.lose("its supervisor died")

    async def close(self) -> None:
        """End it and all it started, in bounded time; idempotent."""
        process, self._process = self._process, None
        if process is None or self._writer is None or self._reading is None:
            return
        self._writer.close()  # it sees the end of its socket, and ends everything
        try:
            await asyncio.wait_for(process.wait(), GRACE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        self.lose("the engine was shut down")
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading


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
