"""The embedded engine: everything on this machine, through one supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rose_hpc.errors import EngineError
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.backend import AttemptBackend
from rose_hpc.execution.child import GRACE_S, python_argv
from rose_hpc.execution.client import Answer, Client, OnStart
from rose_hpc.execution.frames import Unpacker
from rose_hpc.machine import available_cores, available_memory_mb

log = logging.getLogger(__name__)


#: a supervisor is asked so often whether it lives, and killed after so long a silence
PING_S = 2.0
SILENCE_S = 20.0
#: so often another one is started in place of one that died
_MOST_RESTARTS = 5


class LocalSupervisor(Client, asyncio.Protocol):
    """A supervisor that is our child, at the other end of a socket pair: when we are gone, so is its socket.

    Args:
        lost: called when it has died, unless we have told it to.
    """

    many = 8  # it begins with them on another core while the next ones are made

    def __init__(self, lost: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._lost = lost
        self._watching: asyncio.Task[None] | None = None
        self._silent_s = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._unpacker = Unpacker()
        self._why = "its supervisor died"

    async def start(self) -> None:
        """Start it."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *python_argv("rose_hpc.execution.rank"),
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            raise
        self.post({"op": "hello", "path": search_path(), "service": True})
        self._watching = asyncio.create_task(self._watch(), name="rose_hpc watches its supervisor")

    async def _watch(self) -> None:
        """Kill it when it hangs: what it has under way begins anew with another."""
        process = self._process
        while process is not None and process.returncode is None:
            await asyncio.sleep(PING_S)
            self._silent_s += PING_S  # counted, not measured: while we were stopped, we did not listen
            self.post({"op": "ping"})
            if self._silent_s > SILENCE_S and _state(process.pid) != "D":  # it may wait for a file system that stutters
                self._why = f"its supervisor has not been heard of for {SILENCE_S:g} s"
                with suppress(ProcessLookupError):
                    process.kill()
                return

    async def run(
        self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None, lane: int = 0
    ) -> Answer:
        """As :meth:`Client.run`.

        Raises:
            EngineError: when it is not running.
        """
        if self._transport is None or self.gone.is_set():
            raise EngineError(
                "the supervisor of this engine is not running", hint="start a new engine, and resume the run"
            )
        return await super().run(attempt, payload, on_start, lane)

    def _write(self, data: bytes) -> bool:
        if self._transport is None or self._transport.is_closing():
            return False  # whoever waits has been told
        self._transport.write(data)
        return True

    def data_received(self, data: bytes) -> None:
        """Asyncio's: it said something."""
        self._silent_s = 0.0
        for message, payload in self._unpacker.feed(data):
            self.handle(message, payload)

    def connection_lost(self, _error: Exception | None) -> None:
        """Asyncio's: it has gone, or was told to."""
        for group in self.groups.values():  # what it had started and can end no more
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, 9)
        self.lose(self._why)
        if self._watching is not None:
            self._watching.cancel()
        if self._process is not None:
            self._lost()

    async def close(self) -> None:
        """End it and all it started, in bounded time; idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        self._why = "the engine was shut down"
        if self._transport is not None:
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

    is_local = True

    def __init__(self, max_concurrent: int | None = None, name: str = "embedded") -> None:
        super().__init__(name, max_concurrent)
        self._supervisor: LocalSupervisor | None = None
        self._starting: asyncio.Task[None] | None = None
        self._deaths = 0

    @property
    def has_nodes(self) -> bool:
        """Whether what was lost with its supervisor can begin anew with another."""
        return self._deaths <= _MOST_RESTARTS

    async def _open(self) -> None:
        supervisor = self._supervisor = LocalSupervisor(self._died)
        try:
            await supervisor.start()
        except BaseException:  # told to end while it starts: no other one takes its place
            self._supervisor = None
            await supervisor.close()
            raise
        if not supervisor.gone.is_set():
            self.pool.add(supervisor, available_cores(), memory_mb=available_memory_mb())

    def _died(self) -> None:
        """It was killed, perhaps because there was no memory left: another takes its place."""
        if self._supervisor is None:
            return
        self.pool.remove(self._supervisor)
        self._deaths += 1
        log.info("the supervisor of this engine died")
        if self.has_nodes:
            self._starting = asyncio.create_task(self._open_again())
        else:
            self.pool.fail(
                EngineError(
                    f"the supervisors of this engine died {self._deaths} times", hint="is there too little memory?"
                )
            )

    async def _open_again(self) -> None:
        try:
            await self._open()
        except OSError as error:
            self.pool.fail(EngineError(f"no supervisor can be started: {error}", hint="is there too little memory?"))

    async def _close(self) -> None:
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            self.pool.remove(supervisor)
            await supervisor.close()


def _state(pid: int) -> str:
    """The kernel's letter for what a process does."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def search_path() -> list[str]:
    """Where this process finds modules, for the processes that call its functions."""
    return [entry or str(Path.cwd()) for entry in sys.path]
