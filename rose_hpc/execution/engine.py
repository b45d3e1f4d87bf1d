"""Carries attempts out through a radical.asyncflow ``WorkflowEngine``, whatever its backend.

On our own backends a run is one engine task (:mod:`rose_hpc.execution.ensemble`), and an attempt is handed over as it
is, to a supervisor that is already running. On any other backend each attempt is an engine task of its own:
``python -m rose_hpc.execution.rank --once ...`` for commands and merges, an asyncflow function task for functions.
Either way success is what the supervisor reported, never a task's state.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rose_hpc.errors import EngineError
from rose_hpc.execution.attempt import Attempt, Outcome, shard_attributes
from rose_hpc.execution.child import GRACE_S, python_argv
from rose_hpc.execution.ensemble import Ensemble
from rose_hpc.execution.frames import MOST_BYTES
from rose_hpc.machine import available_cores
from rose_hpc.refusals import words_of

if TYPE_CHECKING:
    from rose_hpc.execution.calls import Packer

log = logging.getLogger(__name__)

Call = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]
OnStart = Callable[[], None]


class Engine:
    """One WorkflowEngine, and where attempts that need files of their own keep them.

    Args:
        asyncflow: the engine.
        scratch: the run's scratch folder.
        owner: the run's owner file, which a supervisor without a socket watches for the driver's heartbeat.
        epoch: the driver's.
    """

    def __init__(self, asyncflow: Any, scratch: Path, owner: Path, epoch: int) -> None:
        self.asyncflow = asyncflow
        self._backend = asyncflow.backend
        self._scratch = scratch
        self._owner = owner
        self._epoch = epoch
        ours = getattr(self._backend, "carries_attempts", False)
        self._packer: Packer | None = None
        self._ensemble = Ensemble(asyncflow, f"{scratch.parent.name} ensemble") if ours else None

    @property
    def cores(self) -> int | None:
        """Cores a single task may take; None where the backend does not say."""
        cores = getattr(self._backend, "cores", None)
        return cores if isinstance(cores, int) else None

    @property
    def free_cores(self) -> tuple[int, ...]:
        """Cores of each node that nobody has now; empty where the backend does not say."""
        return tuple(getattr(self._backend, "free_cores", ()))

    @property
    def carries_attempts(self) -> bool:
        """Whether attempts are messages to supervisors that are already running."""
        return self._ensemble is not None

    @property
    def is_local(self) -> bool:
        """Whether all of it is on this machine, whose system knows what has been written."""
        return bool(getattr(self._backend, "is_local", False))

    @property
    def nodes(self) -> int:
        """How many have supervisors of ours."""
        return int(getattr(self._backend, "nodes", 1)) if self.carries_attempts else 0

    @property
    def width(self) -> int | None:
        """Attempts that may be handed over at once; None where the backend queues them itself."""
        return None if self._ensemble is not None else self.cores or available_cores()

    @property
    def has_nodes(self) -> bool:
        """Whether there are nodes left, when one of them was lost."""
        return bool(getattr(self._backend, "has_nodes", False))

    @property
    def deadline(self) -> float | None:
        """When it ends (Unix seconds), where the backend knows."""
        deadline = getattr(self._backend, "deadline", None)
        return deadline if isinstance(deadline, float) else None

    async def run(
        self, attempt: Attempt, call: Call | None = None, on_start: OnStart | None = None
    ) -> tuple[Outcome, Any]:
        """Carry out one attempt.

        Args:
            attempt: what to do.
            call: for a function: the function, its values and keywords.
            on_start: called when it begins, where the backend tells.

        Returns:
            its outcome, and the value of a function.

        Raises:
            EngineError: when the engine itself failed.
            asyncio.CancelledError: when the engine was shut down; the attempt has been ended.
        """
        if (ended := getattr(self.asyncflow, "_shutdown_event", None)) is not None and ended.is_set():
            raise EngineError("the engine was shut down", hint="start a new one, and resume the run")
        if self._ensemble is not None:
            return await self._carried(self._ensemble, attempt, call, on_start)
        if on_start is not None:
            on_start()
        return await (self._function(attempt, call) if call is not None else self._once(attempt))

    async def close(self) -> None:
        """Let the run's own task of the engine end, where it has one; idempotent."""
        if self._ensemble is not None:
            await self._ensemble.close()

    async def _carried(
        self, ensemble: Ensemble, attempt: Attempt, call: Call | None, on_start: OnStart | None
    ) -> tuple[Outcome, Any]:
        if call is None:
            return (await ensemble.run(attempt, b"", on_start))[0], None
        import cloudpickle  # here: runs of commands need none

        try:
            payload = self._pack(call)
        except Exception as error:  # noqa: BLE001 - whatever the pickling of a user's values raises
            message = f"cannot be sent to a process of its own ({words_of(error)})"
            return _failed(attempt, message, error), None
        outcome, value = await ensemble.run(attempt, payload, on_start)
        try:
            return outcome, cloudpickle.loads(value) if value else None
        except Exception as error:  # noqa: BLE001 - whatever unpickling a user's value raises
            message = f"returned a value that cannot be received here ({words_of(error)})"
            return _failed(attempt, message, error), None

    def _pack(self, call: Call) -> bytes:
        from rose_hpc.execution.calls import Packer

        self._packer = self._packer or Packer()
        payload = self._packer.pack(call)
        if len(payload) >= MOST_BYTES:
            raise ValueError(f"its values take {len(payload):,} bytes: leave large data in files")
        return payload

    async def _once(self, attempt: Attempt) -> tuple[Outcome, Any]:
        spec = self._scratch / f"{attempt.id}.json"
        spec.write_text(json.dumps({"attempt": attempt.to_json(), "owner": str(self._owner), "epoch": self._epoch}))

        async def task() -> str:
            return shlex.join(python_argv("rose_hpc.execution.rank", "--once", str(spec).encode().hex()))

        task.__name__ = attempt.id
        # asyncflow's LocalExecutionBackend would put the words together again without their quotes
        plain = {"shell": False} if type(self._backend).__name__ == "LocalExecutionBackend" else {}
        failure = ""
        try:
            await self._await(self.asyncflow.executable_task(task)(task_description=plain))
        except EngineError as error:
            failure = error.message
        done = Path(f"{spec}.done")
        try:
            return Outcome.from_json(json.loads(done.read_bytes())), None
        except (OSError, ValueError):
            message = f"was lost: its supervisor left no report{': ' + failure if failure else ''}"
            return Outcome(attempt.id, ok=False, reason="lost", message=message), None
        finally:
            spec.unlink(missing_ok=True)
            done.unlink(missing_ok=True)

    async def _function(self, attempt: Attempt, call: Call) -> tuple[Outcome, Any]:
        began = time.monotonic()
        future = self.asyncflow.function_task(_call_here)(attempt.variables(), attempt.seal is not None, *call)
        try:
            value, info = await asyncio.wait_for(self._await(future), attempt.timeout_s)
        except TimeoutError:
            message = f"ran longer than its timeout_s of {attempt.timeout_s:g}" if attempt.timeout_s else "timed out"
            return _failed(attempt, message, TimeoutError(message), "timeout"), None
        except EngineError as error:
            cause = error.__cause__ or error
            message = str(cause) if isinstance(cause, _CalledExit) else f"raised {error.message}"
            return _failed(attempt, message, cause), None
        return Outcome(
            attempt.id, ok=True, seconds=round(time.monotonic() - began, 4), node=socket.gethostname(), info=info
        ), value

    async def _await(self, future: Any) -> Any:
        """A future of asyncflow; our cancellation becomes the task's, and the task's failure an EngineError."""
        try:
            # Shielded, because asyncflow's futures start a task when they are cancelled, which fails in a loop that has
            # stopped: where one of a program's learners is interrupted, asyncio.run cancels the others like that.
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                future.cancel()  # passed on to the backend: it is done when the backend says so
                await asyncio.wait([future], timeout=GRACE_S + 2)
            raise
        except Exception as error:
            raise EngineError(words_of(error)) from error
        finally:
            if (task := getattr(future, "task", None)) is not None:
                task["task_backend_specific_kwargs"] = {}  # asyncflow keeps every task for ever: keep them small
                task["stdout"] = task["args"] = task["kwargs"] = None


def _failed(attempt: Attempt, message: str, error: BaseException, reason: str = "error") -> Outcome:
    """The outcome of a function that failed where no supervisor keeps its log."""
    text = "".join(traceback.format_exception(error))
    with suppress(OSError), open(attempt.log, "a") as file:  # the outcome has the end of it
        file.write(text)
    tail = "\n".join(text.splitlines()[-12:])
    return Outcome(attempt.id, ok=False, reason=reason, message=message, node=socket.gethostname(), tail=tail)


class _CalledExit(Exception):
    """What a function did instead of returning."""


async def _call_here(
    variables: Mapping[str, str],
    seals: bool,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Any, Mapping[str, Any] | None]:
    """A function on somebody else's backend: in whatever process or thread that calls it."""
    import inspect

    from rose_hpc.task import task_variables

    with task_variables(variables):
        try:
            value = function(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
        except SystemExit as error:  # asyncflow would let it end the whole program
            raise _CalledExit(f"called sys.exit({error.code!r})") from error
    if not seals or not Path(variables["ROSE_HPC_SHARD"]).exists():
        return value, None
    from rose_hpc.experience.shard import seal as seal_shard

    attributes = shard_attributes(variables)
    return value, seal_shard(variables["ROSE_HPC_SHARD"], attributes=attributes, fsync=True).to_json()
