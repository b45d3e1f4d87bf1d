"""The embedded engine: an asyncflow backend that runs everything on this machine, through one supervisor.

Why not asyncflow's ``LocalExecutionBackend``: it joins a command and its arguments into one unquoted shell line,
leaves the process running when its task is cancelled, and holds all output in memory. Here commands are argument
lists in process groups of their own, ended with everything they started, their output in files; functions run in
resident processes; and at no time do more ranks run than there are cores.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rose_hpc.cores import available_cores
from rose_hpc.errors import EngineError, RoseHpcError, TaskError, UsageError
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.child import GRACE_S, python_argv
from rose_hpc.execution.frames import pack, read_frame

log = logging.getLogger(__name__)

OnStart = Callable[[], None]


class Slots:
    """Cores, given out in the order they were asked for."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, cores: int) -> None:
        """Wait until ``cores`` are free, and take them."""
        if cores > self.total:
            raise UsageError(
                f"a task asks for {cores} cores, and there are {self.total}",
                hint="lower cores_per_rank or max_concurrent",
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((cores, turn))
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(cores)
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._next()
            raise

    def give(self, cores: int) -> None:
        """Give them back."""
        self.free += cores
        self._next()

    def _next(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            cores, turn = self._waiting.popleft()
            self.free -= cores
            turn.set_result(None)


class SupervisorClient:
    """The driver's end of a supervisor: attempts in, outcomes out."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._pending: dict[str, tuple[asyncio.Future[tuple[Outcome, bytes]], OnStart | None]] = {}
        self._groups: dict[str, int] = {}

    async def start(self) -> None:
        """Start the supervisor; idempotent."""
        if self._process is not None:
            return
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
        await self._send({"op": "hello", "path": [entry or str(Path.cwd()) for entry in sys.path], "service": True})

    async def run(
        self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None
    ) -> tuple[Outcome, bytes]:
        """Carry out an attempt; cancelling this ends the attempt first (TERM, and KILL 3 s later)."""
        answer: asyncio.Future[tuple[Outcome, bytes]] = asyncio.get_running_loop().create_future()
        self._pending[attempt.id] = (answer, on_start)
        await self._send({"op": "run", "attempt": attempt.to_json()}, payload)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await self._send({"op": "cancel", "id": attempt.id})
            with suppress(asyncio.CancelledError, TimeoutError, EngineError):
                await asyncio.wait_for(asyncio.shield(answer), GRACE_S + 1)
            raise

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
            message, payload = frame
            if message["op"] == "started":
                self._groups[message["id"]] = message["pid"]
                if (entry := self._pending.get(message["id"])) is not None and entry[1] is not None:
                    entry[1]()
            elif message["op"] == "done":
                outcome = Outcome.from_json(message["outcome"])
                self._groups.pop(outcome.id, None)
                answer, _ = self._pending.pop(outcome.id)
                if not answer.done():
                    answer.set_result((outcome, payload))
        self._lost()

    def _lost(self) -> None:
        """The supervisor is gone: end what it had started, and tell everyone who waits."""
        for group in self._groups.values():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, 9)
        for identifier, (answer, _) in self._pending.items():
            if not answer.done():
                answer.set_result((Outcome(identifier, ok=False, reason="lost", message="its supervisor died"), b""))
        self._pending.clear()
        self._groups.clear()

    async def close(self) -> None:
        """End the supervisor and all it started, in bounded time; idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        assert self._writer is not None  # noqa: S101 - it was made with the process
        self._writer.close()  # the supervisor sees the end of its socket, and ends everything
        try:
            await asyncio.wait_for(process.wait(), GRACE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        if self._reading is not None:
            self._lost()
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading


class _States:
    DONE = "DONE"
    RUNNING = "RUNNING"
    CANCELED = "CANCELED"
    FAILED = "FAILED"
    terminal_states = frozenset({DONE, CANCELED, FAILED})


class EmbeddedExecutionBackend:
    """An asyncflow execution backend for this machine.

    Args:
        max_concurrent: how many ranks run at once, whatever their cores; None: as many as fit on the cores there are.
        name: the name asyncflow knows the backend by.

    Use it as ``asyncflow = await WorkflowEngine.create(await EmbeddedExecutionBackend())``.
    """

    supports_implicit_data_linking = False
    supports_explicit_data_linking = False
    #: understands ``task_description={"attempt": Attempt, ...}``; see :mod:`rose_hpc.execution.engine`
    carries_attempts = True

    def __init__(self, max_concurrent: int | None = None, name: str = "embedded") -> None:
        if max_concurrent is not None and max_concurrent < 1:
            raise UsageError(f"max_concurrent is {max_concurrent}; it must be at least 1")
        self.name = name
        self.max_concurrent = max_concurrent
        self.cores = available_cores()
        self.is_attached = False
        self.attached_to: list[str] = []
        self._work_dir = str(Path.cwd())
        self._slots = Slots(max_concurrent or self.cores)
        self._client = SupervisorClient()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._callback: Callable[[Any, str], None] = lambda task, state: None

    def __await__(self) -> Generator[Any, None, EmbeddedExecutionBackend]:
        return self._start().__await__()

    async def _start(self) -> EmbeddedExecutionBackend:
        await self._client.start()
        return self

    # -- attempts ------------------------------------------------------------------------------------------------------

    async def run(
        self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None
    ) -> tuple[Outcome, bytes]:
        """Carry out one attempt when its cores are free.

        Args:
            attempt: what to do.
            payload: for a function: ``(function, args, kwargs)`` by cloudpickle.
            on_start: called when it begins.

        Returns:
            its outcome, and the function's value by cloudpickle.
        """
        await self._client.start()
        weight = 1 if self.max_concurrent else attempt.cores
        await self._slots.take(weight)
        try:
            return await self._client.run(attempt, payload, on_start)
        finally:
            self._slots.give(weight)

    # -- asyncflow's protocol ------------------------------------------------------------------------------------------

    def register_callback(self, func: Callable[[Any, str], None]) -> None:
        """Asyncflow's hook for state changes."""
        self._callback = func

    def get_task_states_map(self) -> type[_States]:
        """The states that :meth:`register_callback`'s function is told."""
        return _States

    def state(self) -> str:
        """``INITIALIZED`` while the supervisor runs, else ``IDLE``."""
        return "IDLE" if self._client._process is None else "INITIALIZED"

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        """Start asyncflow's tasks; their ends are reported through the callback."""
        for task in tasks:
            self._tasks[task["uid"]] = asyncio.create_task(self._run_task(task), name=f"rose_hpc {task['uid']}")

    async def _run_task(self, task: dict[str, Any]) -> None:
        state = _States.FAILED
        try:
            options = task["task_backend_specific_kwargs"]
            attempt = options.get("attempt") or self._plain_attempt(task)
            payload = options.get("payload", b"") or _pickled_call(task)
            self._callback(task, _States.RUNNING)
            outcome, value = await self.run(attempt, payload, options.get("on_start"))
            state = _report(task, outcome, value, ours="attempt" in options)
        except asyncio.CancelledError:
            state = _States.CANCELED
        except RoseHpcError as error:
            task.update(exception=error, stderr=str(error), stdout=None, return_value=None, exit_code=1)
        finally:
            self._tasks.pop(task["uid"], None)
            self._callback(task, state)

    def _plain_attempt(self, task: Mapping[str, Any]) -> Attempt:
        """A task that did not come from our loop: asyncflow used by itself."""
        options = task["task_backend_specific_kwargs"]
        cores = int(options.get("ranks", 1)) * int(options.get("cores_per_rank", 1))
        Path(self._work_dir).mkdir(parents=True, exist_ok=True)
        return Attempt(
            id=f"{self.attached_to[-1] if self.attached_to else 'task'}.{task['uid']}",
            kind="function" if task.get("function") else "command",
            argv=() if task.get("function") else (task["executable"], *task.get("arguments", ())),
            cwd=str(Path.cwd()),
            log=str(Path(self._work_dir, f"{task['uid']}.log")),
            cores=cores,
        )

    async def cancel_task(self, uid: str) -> bool:
        """End a task; False when there is none of that name."""
        running = self._tasks.get(uid)
        return running is not None and running.cancel()

    async def shutdown(self) -> None:
        """End everything that was started here, within a few seconds."""
        running = list(self._tasks.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=GRACE_S + 1)
        await self._client.close()

    def build_task(self, uid: str, task_desc: dict[str, Any], task_specific_kwargs: dict[str, Any]) -> None:
        """Nothing to prepare."""

    def task_state_cb(self, task: dict[str, Any], state: str) -> None:
        """Nothing to do."""

    def link_explicit_data_deps(self, **_: Any) -> None:
        """Never called: tasks share the file system."""

    def link_implicit_data_deps(self, *_: Any) -> None:
        """Never called: tasks share the file system."""


def _pickled_call(task: Mapping[str, Any]) -> bytes:
    if not task.get("function"):
        return b""
    import cloudpickle

    payload: bytes = cloudpickle.dumps((task["function"], task.get("args", ()), task.get("kwargs", {})))
    return payload


def _report(task: dict[str, Any], outcome: Outcome, value: bytes, *, ours: bool) -> str:
    """Put an outcome where asyncflow looks for it; the state it means."""
    if ours:
        task.update(stdout=(outcome, value), exit_code=0)
        return _States.DONE
    task.update(stdout=outcome.stdout, stderr="" if outcome.ok else outcome.tail, exit_code=outcome.exit_code)
    if outcome.ok and value:
        import cloudpickle

        task["return_value"] = cloudpickle.loads(value)
    if not outcome.ok:
        task["exception"] = TaskError(f"{task['uid']} {outcome.message}", hint=outcome.tail)
    return _States.DONE if outcome.ok else _States.FAILED
