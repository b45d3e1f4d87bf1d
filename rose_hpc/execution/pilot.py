"""The pilot engine: attempts carried out in an allocation that radical.pilot holds.

One launch for each allocation, one message for each attempt. The pilot starts one task with a supervisor on every node
(``use_mpi=False``: a node that is lost takes its own supervisor and no other); supervisors join the driver's hub, and
from then on an attempt costs a message and a fork, not a launch. So environments of any shape run side by side, in
waves where there are more than fit, and update and check run on the same cores when collecting is over. Where an
attempt ran is said by its supervisor, and so is whether it succeeded: a pilot's or task's state says nothing of that.

Directly on asyncflow's protocol and not on rhapsody's backend: see :mod:`rose_hpc.execution.pilot_tasks`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rose_hpc.errors import EngineError
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.backend import AttemptBackend
from rose_hpc.execution.child import python_argv
from rose_hpc.execution.client import Answer, OnStart
from rose_hpc.execution.hub import Hub, RemoteClient
from rose_hpc.execution.local import search_path
from rose_hpc.execution.pilot_slurm import LABEL, slurm_resources
from rose_hpc.execution.pilot_tasks import PilotTasks
from rose_hpc.execution.telling import DOUBT_S

log = logging.getLogger(__name__)

#: supervisors are one task of the pilot: this long they may take to start on all nodes and to join
JOIN_TIMEOUT_S = 120.0
_SUPERVISORS = "rose_hpc.supervisors"


class RadicalExecutionBackend(AttemptBackend):
    """An asyncflow backend in a pilot: ``engine = await RadicalExecutionBackend({'runtime': 30, ...})``.

    Args:
        resources: what the pilot is; see :func:`rose_hpc.execution.pilot_resources.plan_pilot`. ``{'runtime': 30,
            'resource': 'local.localhost'}`` is a pilot on this machine, with all its cores, for 30 minutes;
            ``'local.slurm'`` is the Slurm of this machine: the job we are in, or one that is submitted, as
            ``'slurm': {'nodes': 3, 'partition': ...}`` says in the words of a configuration's ``[slurm]``.
        name: what asyncflow calls this backend.

    Raises:
        UsageError: resources that make no sense, or radical.pilot is not installed.
        EngineError: (from ``await``) the pilot failed, was not active within ``start_timeout_s``, or no supervisor
            joined.
    """

    def __init__(self, resources: Mapping[str, Any], name: str = "pilot") -> None:
        super().__init__(name)
        if resources.get("resource") == LABEL:
            resources = slurm_resources(resources, os.environ)
        elif int(os.environ.get("SLURM_JOB_NUM_NODES", 1)) > 1 and resources.get("resource", "local.") != LABEL:
            log.warning("a pilot on %s may leave nodes of this job idle", resources.get("resource", "this host"))
        self._pilot = PilotTasks(resources)
        self._pilot.register_callback(self._pilot_task_changed)
        self._hub: Hub | None = None
        self._failing = False
        self._failed = asyncio.Event()
        self._everyone = asyncio.Event()
        self._ended = False

    @property
    def sandbox(self) -> Path | None:
        """The folder in which radical.pilot keeps its files; None before the start."""
        return self._pilot.sandbox

    @property
    def deadline(self) -> float | None:
        """When the pilot ends (Unix seconds); None before the start."""
        return self._pilot.deadline

    @property
    def has_nodes(self) -> bool:
        """Whether what was lost with a node can begin anew on another."""
        return not self._failing and self.pool.width > 0

    @property
    def shape(self) -> tuple[int, int] | None:
        """Nodes, and cores of each, as far as they are known before the start; None: not known."""
        return self._pilot.shape

    @property
    def memory_mb(self) -> float:
        """What the job has on each node, as far as it is known before the start; infinite: not known."""
        return self._pilot.memory_mb or math.inf

    def state(self) -> str:
        """The pilot's: NEW, radical.pilot's own while it starts, ACTIVE, DONE, FAILED, or CLOSED."""
        return self._pilot.state()

    async def _open(self) -> None:
        await self._pilot
        try:
            await self._launch()
        except BaseException:
            await self._close()
            raise

    async def _launch(self) -> None:
        """Start a supervisor on every node, and wait until they have joined."""
        nodes, cores = max(1, self._pilot.nodes), max(1, self._pilot.cores_per_node)
        keys = Path(tempfile.mkdtemp(prefix="hub-", dir=self._pilot.sandbox), "keys.json")
        self._hub = Hub(keys, self._joined, self._lost)
        facts: dict[str, Any] = {
            "cores_per_node": cores,
            "memory_mb": self._pilot.memory_mb,
            "path": search_path(),
            "environment": self._pilot.task_environment(),
        }
        job = os.environ.get("SLURM_JOB_ID")
        if job and os.environ.get("ROSE_HPC_OWN_JOB") == job:
            facts["own_job"] = job  # the job script's: should its node be lost, somebody has to end the job
        await self._hub.start(facts)
        argv = python_argv("rose_hpc.execution.rank", "--connect", str(keys).encode().hex())
        options = {"ranks": nodes, "cores_per_rank": cores, "name": "supervisors"}
        task = {"uid": _SUPERVISORS, "executable": argv[0], "arguments": argv[1:]}
        await self._pilot.submit_tasks([{**task, "task_backend_specific_kwargs": options}])
        try:
            await asyncio.wait_for(self._everyone.wait(), JOIN_TIMEOUT_S)
        except TimeoutError:
            here = len(self._hub.clients)
            message = f"only {here} of {nodes} supervisors of the pilot have joined after {JOIN_TIMEOUT_S:g} s"
            if here == 0:
                raise EngineError(message, hint=f"see {self.sandbox}") from None
            log.warning("%s; going on with those", message)
        if self.pool.failure is not None:
            raise self.pool.failure

    def _joined(self, client: RemoteClient) -> None:
        self.pool.add(client, client.cores, client.gpus, client.memory_mb)
        log.info("the supervisor on %s has joined, with %d cores", client.node, client.cores)
        if self._hub is not None and len(self._hub.clients) >= max(1, self._pilot.nodes):
            self._everyone.set()

    def _lost(self, client: RemoteClient, why: str) -> None:
        log.warning("%s", why)
        self.pool.remove(client)
        if not self.pool.width:
            self._fail(EngineError(f"no supervisor of the pilot is left: {why}", hint=f"see {self.sandbox}"))

    def _pilot_task_changed(self, task: dict[str, Any], state: str) -> None:
        """The task of the supervisors has ended: so have all that have not been heard of since."""
        if self._ended or state == "RUNNING":
            return
        error = task.get("exception") or EngineError(f"their task ended as {state}")
        if not isinstance(error, EngineError):
            error = EngineError(f"the pilot's supervisors are gone: {getattr(error, 'message', error)}")
        self._fail(EngineError(error.message, hint=f"see {self.sandbox}"))

    def _fail(self, error: EngineError) -> None:
        """Everything fails, and later attempts too.

        Not this very moment: when Slurm ends a job it ends the driver as well, but not always first, and a run that is
        interrupted has not failed.
        """
        self._failing = True
        asyncio.get_running_loop().call_later(DOUBT_S, self._fail_now, error)

    def _fail_now(self, error: EngineError) -> None:
        if self._ended:
            return
        self.pool.fail(self._pilot.failure or error)  # radical.pilot knows more, where it is the pilot that failed
        self._failed.set()
        self._everyone.set()
        if self._hub is not None:
            for client in list(self._hub.clients.values()):
                self._hub.forget(client, error.message)

    async def run(self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None) -> Answer:
        """As :meth:`AttemptBackend.run`; an attempt whose pilot has failed raises EngineError."""
        answer = await super().run(attempt, payload, on_start)
        if answer[0].reason == "lost" and self._failing and not self._ended:
            await self._failed.wait()
            raise self.pool.failure or EngineError("the pilot failed", hint=f"see {self.sandbox}")
        return answer

    async def _close(self) -> None:
        self._ended = True
        self._failed.set()
        self.pool.fail(EngineError("the engine was shut down", hint="start another one"))
        if self._hub is not None:
            await self._hub.close()
        await self._pilot.shutdown()
