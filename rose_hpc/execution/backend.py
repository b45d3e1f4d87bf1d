"""Runs and plain tasks of radical.asyncflow: the backend protocol, on top of a pool of supervisors.

Why not asyncflow's ``LocalExecutionBackend``: it joins a command and its arguments into one unquoted shell line, leaves
the process running when its task is cancelled, and holds all output in memory. Here commands are argument lists in
process groups of their own, ended with everything they started, their output in files; functions run in resident
processes; and at no time do more ranks run than there are cores.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from rose_hpc.errors import RoseHpcError, TaskError, UsageError
from rose_hpc.execution.attempt import Attempt, Outcome, thread_limits
from rose_hpc.execution.child import GRACE_S
from rose_hpc.execution.client import Answer, OnStart
from rose_hpc.execution.pool import Pool


class _States:
    DONE = "DONE"
    RUNNING = "RUNNING"
    CANCELED = "CANCELED"
    FAILED = "FAILED"
    terminal_states = frozenset({DONE, CANCELED, FAILED})


class AttemptBackend:
    """An asyncflow execution backend that carries out attempts; subclasses start and end the supervisors of its pool.

    Args:
        name: the name asyncflow knows the backend by.
        max_concurrent: how many attempts run at once on a supervisor, whatever their cores; None: as many as fit.
    """

    supports_implicit_data_linking = False
    supports_explicit_data_linking = False
    #: understands ``task_description={"ensemble": Ensemble}``; see :mod:`rose_hpc.execution.ensemble`
    carries_attempts = True

    def __init__(self, name: str, max_concurrent: int | None = None) -> None:
        if max_concurrent is not None and max_concurrent < 1:
            raise UsageError(f"max_concurrent is {max_concurrent}; it must be at least 1")
        self.name = name
        self.pool = Pool(max_concurrent)
        self.is_attached = False
        self.attached_to: list[str] = []
        self._started = False
        self._work_dir = str(Path.cwd())
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._callback: Callable[[Any, str], None] = lambda task, state: None

    def __await__(self) -> Generator[Any, None, Self]:
        return self._ready().__await__()

    async def _ready(self) -> Self:
        if not self._started:
            await self._open()
            self._started = True
        return self

    async def _open(self) -> None:
        """Start supervisors, and add them to the pool."""
        raise NotImplementedError

    async def _close(self) -> None:
        """End them; in bounded time, and more than once."""
        raise NotImplementedError

    @property
    def cores(self) -> int:
        """Cores that one task may have."""
        return self.pool.cores

    @property
    def free_cores(self) -> tuple[int, ...]:
        """Cores of each node that nobody has now, of those with any; where all are taken, the one that comes next."""
        return tuple(cores for cores in self.pool.slots.free.values() if cores) or (1,)

    @property
    def nodes(self) -> int:
        """How many there are now."""
        return len(self.pool.slots.total)

    @property
    def width(self) -> int:
        """Attempts of one core that run at once."""
        return self.pool.width

    async def run(self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None) -> Answer:
        """Carry out one attempt when and where its cores are free.

        Args:
            attempt: what to do.
            payload: for a function: ``(function, args, kwargs)`` by cloudpickle.
            on_start: called when it begins.

        Returns:
            its outcome, and the function's value by cloudpickle.
        """
        await self._ready()
        return await self.pool.run(attempt, payload, on_start)

    # -- asyncflow's protocol ------------------------------------------------------------------------------------------

    def register_callback(self, func: Callable[[Any, str], None]) -> None:
        """Asyncflow's hook for state changes."""
        self._callback = func

    def get_task_states_map(self) -> type[_States]:
        """The states that :meth:`register_callback`'s function is told."""
        return _States

    def state(self) -> str:
        """``INITIALIZED`` while there are supervisors, else ``IDLE``."""
        return "INITIALIZED" if self._started else "IDLE"

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        """Start asyncflow's tasks; their ends are reported through the callback."""
        for task in tasks:
            self._tasks[task["uid"]] = asyncio.create_task(self._run_task(task), name=f"rose_hpc {task['uid']}")

    async def _run_task(self, task: dict[str, Any]) -> None:
        state = _States.FAILED
        try:
            if (ensemble := task["task_backend_specific_kwargs"].get("ensemble")) is not None:
                self._callback(task, _States.RUNNING)
                await ensemble.serve(self)
                task.update(stdout="", exit_code=0)
                state = _States.DONE
            else:
                attempt, payload = self._plain_attempt(task), _pickled_call(task)
                self._callback(task, _States.RUNNING)
                state = _report(task, *await self.run(attempt, payload), attempt)
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
        name = str(task["name"])
        ranks, cores = (_whole(options, key, name) for key in ("ranks", "cores_per_rank"))
        gpus, mem_gb, mem_mb = (
            _amount(options, key, name) for key in ("gpus_per_rank", "mem_gb_per_rank", "mem_per_rank")
        )
        argv = () if task.get("function") else (task["executable"], *task.get("arguments", ()))
        if ranks > 1 and argv:
            argv = (sys.executable, "-I", "-S", str(Path(__file__).with_name("pilot_ranks.py")), str(ranks), *argv)
        Path(self._work_dir).mkdir(parents=True, exist_ok=True)
        return Attempt(
            id=f"{self.attached_to[-1] if self.attached_to else 'task'}.{task['uid']}",
            kind="command" if argv else "function",
            argv=argv,
            cwd=str(options.get("cwd") or Path.cwd()),
            env={**thread_limits(cores), **{str(k): str(v) for k, v in (options.get("environment") or {}).items()}},
            log=str(Path(self._work_dir, f"{task['uid']}.log")),
            cores=ranks * cores,
            gpus=ranks * gpus,
            memory_mb=ranks * int(mem_mb or mem_gb * 1024),
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
        self._started = False
        await self._close()
        if self.is_attached:
            with suppress(OSError):  # asyncflow made a folder for logs; nothing may have needed it
                Path(self._work_dir).rmdir()

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
    from rose_hpc.execution.calls import Packer

    return Packer().pack((task["function"], task.get("args", ()), task.get("kwargs", {})))


def _whole(options: Mapping[str, Any], key: str, name: str) -> int:
    value = options.get(key, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"task {name!r} has {key}={value!r}", hint="it must be a whole number, at least 1")
    return value


def _amount(options: Mapping[str, Any], key: str, name: str) -> float:
    value = options.get(key) or 0.0
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise UsageError(f"task {name!r} has {key}={value!r}", hint="it must be a number, at least 0")
    return float(value)


def _report(task: dict[str, Any], outcome: Outcome, value: bytes, attempt: Attempt) -> str:
    """Put an outcome where asyncflow looks for it; the state it means."""
    task.update(stdout=outcome.stdout, stderr="" if outcome.ok else outcome.tail, exit_code=outcome.exit_code)
    if outcome.ok and value:
        import cloudpickle

        task["return_value"] = cloudpickle.loads(value)
    if not outcome.ok:
        said = outcome.tail.rstrip().rpartition("\n")[2]
        message = f"task {task['name']!r} {outcome.message}{f': {said}' if said else ''}"
        task["exception"] = TaskError(message, hint=f"see {attempt.log}")
    return _States.DONE if outcome.ok else _States.FAILED
