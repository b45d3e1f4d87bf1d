"""Tasks of radical.pilot, in the manner of an asyncflow backend: one task of the pilot for each task submitted.

Built directly on asyncflow's backend protocol and not on rhapsody's backend of the same name, for that one starts
radical.pilot inside the user's process, waits for ever for a pilot that cannot start, sets results from
radical.pilot's threads without waking the event loop (one second a task), and leaves a driver's processes behind
when it is killed. What is needed here is smaller than what would have to be changed there.

Three processes: the user's program with :class:`PilotTasks`; a *reaper*
(:mod:`rose_hpc.execution.pilot_reaper`), which ends everything when the program does, in whatever way; below it the
*host* (:mod:`rose_hpc.execution.pilot_host`), where radical.pilot is imported.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rose_hpc.errors import EngineError, RoseHpcError, UsageError
from rose_hpc.execution.pilot_link import CLOSE_TIMEOUT_S, Link
from rose_hpc.execution.pilot_resources import PilotPlan, not_for_scripts, plan_pilot, shell_safe
from rose_hpc.execution.pilot_task_plan import plan_task
from rose_hpc.execution.pilot_words import last_words, task_error, why
from rose_hpc.slurm.commands import clean_environment

logger = logging.getLogger(__name__)

#: how much of its runtime a pilot may have used when it tells that it is active
_START_S = 30.0
#: variables that mean something on the driver's host only
_OF_THIS_HOST = frozenset({"TMPDIR", "HOSTNAME", "DISPLAY", "SSH_AUTH_SOCK", "SSH_CONNECTION", "XDG_RUNTIME_DIR"})


class TaskStates:
    """The states asyncflow knows tasks by."""

    DONE = "DONE"
    RUNNING = "RUNNING"
    CANCELED = "CANCELED"
    FAILED = "FAILED"
    terminal_states = frozenset({DONE, CANCELED, FAILED})


class PilotTasks:
    """Runs executable tasks in a pilot: ``engine = await PilotTasks({'runtime': 30, ...})``.

    Args:
        resources: what the pilot is; see :func:`rose_hpc.execution.pilot_resources.plan_pilot`. ``{'runtime': 30,
            'resource': 'local.localhost'}`` is a pilot on this machine, with all its cores, for 30 minutes.
        name: what asyncflow calls this backend.

    Attributes:
        sandbox: the folder in which radical.pilot keeps its files; None before the start.
        nodes, cores_per_node: what the pilot holds; 0 before the start.
        deadline: when it ends (Unix seconds); None before the start.

    Raises:
        UsageError: resources that make no sense, or radical.pilot is not installed.
        EngineError: (from ``await``) the pilot failed, or was not active within ``start_timeout_s``.
    """

    supports_implicit_data_linking = False
    supports_explicit_data_linking = False

    def __init__(self, resources: Mapping[str, Any], name: str = "pilot") -> None:
        if importlib.util.find_spec("radical.pilot") is None:
            raise UsageError("radical.pilot is not installed", hint="run: pip install 'rose-hpc[pilot]'")
        self.name = name
        self.is_attached = False
        self.attached_to: list[str] = []
        self.sandbox: Path | None = None
        self.nodes = self.cores_per_node = 0
        self.deadline: float | None = None
        self._work_dir = str(Path.cwd())
        self._plan = plan_pilot(resources, host_cores=len(os.sched_getaffinity(0)), folder=Path.cwd())
        self._callback: Callable[[dict[str, Any], str], None] = lambda task, state: None
        self._link: Link | None = None
        self._tasks: dict[str, dict[str, Any]] = {}  # our id of a task -> asyncflow's, until it is final
        self._count = 0
        self._ready: asyncio.Future[None] | None = None
        self._error: EngineError | None = None
        self._state = "NEW"
        self._failures = 0

    def __await__(self) -> Generator[Any, None, PilotTasks]:
        return self._start().__await__()

    async def __aenter__(self) -> PilotTasks:
        return await self._start()

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    async def _start(self) -> PilotTasks:
        if self._ready is not None:
            await asyncio.shield(self._ready)
            if self._error is not None:
                raise self._error
            return self
        self._ready = asyncio.get_running_loop().create_future()
        self.sandbox = _make_sandbox(self._plan)
        logger.info("starting a pilot on %s, sandbox %s", self._plan.resource, self.sandbox)
        try:
            self._link = await Link.open(self._plan, self.sandbox, self._heard)
            async with asyncio.timeout(self._plan.start_timeout_s):
                await asyncio.shield(self._ready)
        except TimeoutError:
            self._fail(f"it was not active after {self._plan.start_timeout_s:g} s, only {self._state}")
        except BaseException:  # cancelled: nobody will close what has been started
            await self._close(self._grace_s)
            raise
        if self._error is not None:
            await self._close(self._grace_s)
            raise self._error
        return self

    # What the host tells, always on the event loop

    def _heard(self, message: dict[str, Any] | None) -> None:
        if message is None:
            self._state = "FAILED"
            self._fail(f"the process that runs radical.pilot ended{last_words(self.sandbox)}")
        elif message["op"] == "state":
            self._state = message["state"]
        elif message["op"] == "ready" and self._ready is not None and not self._ready.done():
            self._state, self.nodes, self.cores_per_node = "ACTIVE", message["nodes"], message["cores_per_node"]
            self.deadline = self._plan.deadline or time.time() + self._plan.runtime_min * 60 - _START_S
            self._ready.set_result(None)
        elif message["op"] == "running" and message["id"] in self._tasks:
            self._callback(self._tasks[message["id"]], TaskStates.RUNNING)
        elif message["op"] == "done" and message["id"] in self._tasks:
            self._finish(message)
        elif message["op"] == "ended":
            self._state = message["state"]
            self._fail(why(self._plan, message))

    def _finish(self, message: Mapping[str, Any]) -> None:
        task, state = self._tasks.pop(message["id"]), message["state"]
        stdout, stderr = message["stdout"], message["stderr"]
        if task.get("capture_stdio"):
            stdout, stderr = (f"{message['sandbox']}/{message['id']}.{end}" for end in ("out", "err"))
        task.update(stdout=stdout, stderr=stderr, exit_code=message["exit_code"], return_value=None)
        if state == TaskStates.FAILED:
            self._failures += 1
            task["exception"] = task_error(task, message)
        self._callback(task, state)

    def _fail(self, cause: str) -> None:
        """Fail everything: the start, if it is not over, every task that is not final, and all later ones."""
        if self._error is None:
            self._error = EngineError(f"the pilot on {self._plan.resource}: {cause}", hint=f"see {self.sandbox}")
            logger.error("%s", self._error)
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)  # the error is raised by who waits
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            self._refuse(task, self._error)

    def _refuse(self, task: dict[str, Any], error: RoseHpcError) -> None:
        self._failures += 1
        task.update(stdout="", stderr=str(error), exit_code=None, return_value=None, exception=error)
        self._callback(task, TaskStates.FAILED)

    # asyncflow's backend protocol

    def state(self) -> str:
        """Return the pilot's state: NEW, radical.pilot's own while it starts, ACTIVE, DONE, FAILED, or CLOSED."""
        return self._state

    def get_task_states_map(self) -> TaskStates:
        """Return the states that tasks are reported in."""
        return TaskStates()

    def register_callback(self, func: Callable[[dict[str, Any], str], None]) -> None:
        """Have ``func(task, state)`` called, on the event loop, for each change of a task's state."""
        self._callback = func

    async def submit_tasks(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Start ``tasks``; those that cannot be started are reported FAILED at once, with the reason."""
        plans = []
        for task in tasks:
            try:
                if self._link is None or self._error is not None:
                    raise self._error or EngineError("the pilot has not been started", hint="await the backend first")
                plan = plan_task(task, pilot=self._plan, environ=os.environ, folder=Path.cwd())
            except RoseHpcError as error:
                self._refuse(task, error)
                continue
            self._count += 1
            uid = f"task.{self._count:06d}"
            self._tasks[uid] = task
            plans.append({"id": uid, **dataclasses.asdict(plan)})
        if plans and self._link is not None:
            self._link.tell("submit", tasks=plans)

    async def cancel_task(self, uid: str) -> bool:
        """Cancel asyncflow's task ``uid``; CANCELED is reported when it has ended. False: it is not running here."""
        found = next((ours for ours, task in self._tasks.items() if task["uid"] == uid), None)
        if found is None or self._link is None:
            return False
        self._link.tell("cancel", id=found)
        return True

    async def shutdown(self) -> None:
        """End the pilot and every process of it; tasks that are not final are reported CANCELED.

        A pilot on this machine is gone in less than a second; another one in 45 s at most.
        """
        if self._state == "CLOSED":
            return
        ended, self._state = self._error is not None, "CLOSED"
        self._error = self._error or EngineError("the pilot has been shut down", hint="start another backend")
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            self._callback(task, TaskStates.CANCELED)
        await self._close(self._grace_s)
        if self._plan.sandbox is None and self.sandbox is not None and not self._failures and not ended:
            await asyncio.to_thread(shutil.rmtree, self.sandbox, ignore_errors=True)

    @property
    def shape(self) -> tuple[int, int] | None:
        """Nodes, and cores of each, as far as the plan knows them."""
        plan, cores = self._plan, self._plan.resource_config.get("cores_per_node")
        if plan.forks:
            return 1, plan.cores
        return (plan.nodes, int(cores)) if plan.nodes and cores else None

    @property
    def memory_mb(self) -> int:
        """What the job has on each node; 0: not said."""
        return self._plan.memory_mb

    @property
    def failure(self) -> EngineError | None:
        """Why the pilot runs nothing any more; None while it does."""
        return self._error

    def task_environment(self) -> dict[str, str]:
        """What tasks do not inherit of the driver's environment."""
        if not self._plan.submit_environment:
            return not_for_scripts(os.environ)
        return {k: v for k, v in clean_environment(os.environ).items() if k not in _OF_THIS_HOST}

    @property
    def _grace_s(self) -> float:
        # What was forked here is killed at once: closing would take radical.pilot 4 to 15 s, for the same end.
        # Elsewhere it has jobs and steps to cancel that are no processes of ours.
        return 0.0 if self._plan.forks or self._plan.release else CLOSE_TIMEOUT_S

    async def _close(self, grace_s: float) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close(grace_s)

    def build_task(self, uid: str, task_desc: dict[str, Any], task_specific_kwargs: dict[str, Any]) -> None:
        """Part of the protocol; tasks are built when they are submitted."""

    def link_explicit_data_deps(self, *_: Any, **__: Any) -> None:
        """Part of the protocol, never called: tasks share a file system."""

    def link_implicit_data_deps(self, *_: Any, **__: Any) -> None:
        """Part of the protocol, never called: tasks share a file system."""


def _make_sandbox(plan: PilotPlan) -> Path:
    places = (tempfile.gettempdir(), "/tmp")  # noqa: S108 - mkdtemp makes the folder, private and unpredictable
    try:
        base = plan.sandbox or Path(tempfile.mkdtemp(prefix="rose-hpc-pilot-", dir=next(filter(shell_safe, places))))
        if plan.sandbox is not None:
            base.mkdir(parents=True, exist_ok=True)
            base = Path(tempfile.mkdtemp(prefix="pilot-", dir=base))
        for folder in ("home", "tmp", "config", "client"):
            (base / folder).mkdir()
    except OSError as error:
        raise UsageError(f"the pilot's sandbox {error.filename} cannot be made: {error.strerror}") from error
    return base
