"""The supervisor: starts the work, keeps its logs, ends it on time, seals its shards, and reports.

Commands run in process groups of their own, functions in resident hosts, merges and seals in a host that no user's
function runs in. There is one thread, which waits for everything at once; :mod:`rose_hpc.execution.rank` says how a
supervisor is started.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rose_hpc import failpoints
from rose_hpc.execution.attempt import READ_ONCE, TASK_VARIABLES, Attempt, Outcome, shard_attributes
from rose_hpc.execution.behind import Behind
from rose_hpc.execution.child import Child
from rose_hpc.execution.jobs import (
    STOPPED_LOOK_S,
    STOPPED_LOOKS,
    Host,
    Job,
    why_it_ended,
)
from rose_hpc.execution.mpi import launch
from rose_hpc.execution.nearby import Nearby
from rose_hpc.execution.orphans import ATTEMPT_VARIABLE, adopt, end_all_orphans, end_orphans
from rose_hpc.execution.stopped import is_stopped

#: a merge or seal that takes longer is stuck; its process is replaced
SERVICE_TIMEOUT_S = 3600.0
#: that an attempt has begun may be told so much later: with how it ended, if that is soon
_STARTED_S = 0.02
#: and that it has ended, while others stand behind one another: with how those ended
_MORE_S = 0.002
Report = Callable[[Mapping[str, Any], bytes], None]


class Supervisor:
    """Everything under way, and the one place that waits."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self.selector = selectors.DefaultSelector()
        self.jobs: dict[str, Job] = {}
        self.children: set[Child] = set()
        self.hosts: list[Host] = []
        self.service: Host | None = None  # a host no user's function runs in: it seals and merges
        self.waiting: deque[Job] = deque()  # for the service
        self.path: list[str] = []
        self.behind = Behind()
        self.near = Nearby(self.node, self.jobs, self._begin, self._serve)
        self._said: list[tuple[Mapping[str, Any], bytes]] = []
        self._tell_at = float("inf")  # monotonic
        self.done = False
        self._adopts = False
        self.after_round: Callable[[], None] = lambda: None

    def adopt(self) -> None:
        """Take every orphan of this process's descendants for an attempt's; for a process that does nothing else."""
        adopt()
        self._adopts = True

    # -- what the driver asks ------------------------------------------------------------------------------------------

    def handle(self, message: Mapping[str, Any], payload: bytes) -> None:
        """One message of the driver."""
        match message["op"]:
            case "hello":
                self.path = list(message["path"])
                if message["service"]:
                    self.service = self.service or self._new_host(service=True)
            case "run":
                failpoints.hit("attempt-received")
                attempt, lane = Attempt.from_json(message["attempt"]), message.get("lane", 0)
                if not self.behind.stands(lane, attempt, payload):
                    self.start(attempt, payload, lane)
            case "ping":
                self._say({"op": "beat"})
            case "cancel":
                self._cancel(message["id"])
            case other:
                raise ValueError(f"unknown message {other!r}")

    def start(self, attempt: Attempt, payload: bytes, lane: int = 0) -> None:
        """Begin an attempt."""
        try:
            job = Job(attempt, payload, lane)
        except OSError as error:
            self._say_done(
                Outcome(attempt.id, ok=False, reason="spawn", node=self.node, message=f"its log: {error}"), b""
            )
            self._next_of(lane)
            return
        self.jobs[attempt.id] = job
        if attempt.policy is None or self.near.has(job):
            self._begin(job)

    def _begin(self, job: Job) -> None:
        if job.attempt.kind == "command":
            self._start_command(job)
        elif job.attempt.kind == "function":
            self._call(job)
        else:
            self._serve(job)

    def _call(self, job: Job) -> None:
        attempt, variables = job.attempt, job.attempt.variables()
        read_once = {name: variables.pop(name) for name in READ_ONCE if name in variables}
        try:
            host = self._function_host(read_once)
        except OSError as error:
            self._finish(job, "spawn", f"no process to call it in could be started: {error}")
            return
        message = {"env": variables, "cwd": attempt.cwd}
        if host.path != self.path:
            host.path = message["path"] = self.path
        host.ask(job, "function", message, job.payload, attempt.timeout_s)
        self._say({"op": "started", "id": attempt.id, "pid": host.child.pid})

    def _function_host(self, variables: Mapping[str, str]) -> Host:
        """A resting host that began with these variables."""
        host = next((h for h in self.hosts if h.job is None and h.variables == variables and not h.retired), None)
        if host is None:
            host = self._new_host(variables=variables)
            self.hosts.append(host)
        return host

    def _start_command(self, job: Job) -> None:
        attempt = job.attempt
        env = {k: v for k, v in os.environ.items() if k not in TASK_VARIABLES}
        env.setdefault("PYTHONUNBUFFERED", "1")  # a log shows what was printed before a kill
        env.update(attempt.variables())
        env[ATTEMPT_VARIABLE] = attempt.id
        try:
            argv, env = (attempt.argv, env) if attempt.ranks == 1 else launch(attempt, env)
            job.child = Child(argv, cwd=attempt.cwd, env=env)
        except (OSError, ValueError) as error:
            self._finish(job, "spawn", f"{attempt.argv[0]} could not be started: {error}")
            return
        failpoints.hit("command-started")
        job.child.log = job.log
        if attempt.timeout_s is not None:
            job.child.end_at = job.child.started + attempt.timeout_s
        self._watch(job.child, lambda: self._command_ended(job))
        self._say({"op": "started", "id": attempt.id, "pid": job.child.pid})

    def _cancel(self, identifier: str) -> None:
        job = self.jobs.get(identifier)
        if job is None:
            if self.behind.remove(identifier):
                why = "cancelled"
                self._say_done(Outcome(identifier, ok=False, reason=why, message=why, node=self.node), b"")
        elif job in self.waiting:
            self.waiting.remove(job)
            self._finish(job, "cancelled", "cancelled")
        elif self.near.forget(job):
            self._finish(job, "cancelled", "cancelled")
        elif job.child is not None:
            job.child.ask_to_end("cancelled", time.monotonic())

    # -- what happens --------------------------------------------------------------------------------------------------

    def _watch(self, child: Child, ended: Callable[[], None]) -> None:
        self.children.add(child)
        for fd in child.pipes:
            self.selector.register(fd, selectors.EVENT_READ, lambda fd=fd: self._read(child, fd))

        def on_exit() -> None:
            self.selector.unregister(child.pidfd)
            for fd in child.pipes:
                if fd in self.selector.get_map():
                    self.selector.unregister(fd)
            self.children.discard(child)
            ended()

        self.selector.register(child.pidfd, selectors.EVENT_READ, on_exit)

    def _read(self, child: Child, fd: int) -> None:
        if not child.read(fd):
            self.selector.unregister(fd)

    def _command_ended(self, job: Job) -> None:
        assert job.child is not None  # noqa: S101 - it has just ended
        failpoints.hit("command-ended")
        code = job.child.reap()
        failpoints.hit("command-reaped")
        if self._adopts:
            end_orphans({child.pid for child in self.children}, job.attempt.id)
        job.facts.update(exit_code=code, max_rss_mb=job.child.max_rss_mb)
        if job.child.end_why or code != 0:
            self._finish(job, *why_it_ended(job.child, code, job.attempt.timeout_s))
        else:
            self._after_work(job)

    def _after_work(self, job: Job) -> None:
        """The work itself went well: seal its shard, if it left one."""
        if job.attempt.seal is None:
            self._finish(job)
        elif os.path.exists(job.attempt.env["ROSE_HPC_SHARD"]):  # noqa: PTH110 - a Path costs more than the answer
            self._serve(job)
        elif job.attempt.seal:
            self._finish(job, "shard", "wrote no shard to $ROSE_HPC_SHARD")
        else:
            self._finish(job)

    def _serve(self, job: Job) -> None:
        """Queue for the service, which takes one thing at a time."""
        self.waiting.append(job)
        self._next_service()

    def _next_service(self) -> None:
        if not self.waiting or (self.service is not None and self.service.job is not None):
            return
        job = self.waiting.popleft()
        try:
            self.service = self.service or self._new_host(service=True)
        except OSError as error:
            problem = f"no process to merge in could be started: {error}"
            if job.attempt.kind == "fetch":
                self.near.fetched(job, copied=False, problem=problem)
            else:
                self._finish(job, "spawn", problem)
            return
        if job.attempt.kind == "merge":
            timeout_s = job.attempt.timeout_s or SERVICE_TIMEOUT_S
            self.service.ask(job, "merge", dict(job.attempt.merge or {}), b"", timeout_s)
            self._say({"op": "started", "id": job.attempt.id, "pid": self.service.child.pid})
        elif job.attempt.kind == "fetch":
            self.service.ask(job, "fetch", dict(job.attempt.policy or {}), b"", SERVICE_TIMEOUT_S)
        else:
            env = job.attempt.env
            message = {"shard": env["ROSE_HPC_SHARD"], "attributes": shard_attributes(env)}
            self.service.ask(job, "seal", message, b"", SERVICE_TIMEOUT_S)

    def _new_host(self, *, service: bool = False, variables: Mapping[str, str] = MappingProxyType({})) -> Host:
        host = Host(service, variables)
        self.selector.register(host.socket, selectors.EVENT_READ, lambda: self._host_answered(host))
        self._watch(host.child, lambda: self._host_ended(host))
        return host

    def _host_answered(self, host: Host) -> None:
        try:
            frame = host.receiver.next()  # an answer is sent at once, so reading it whole does not wait
        except ConnectionError:
            frame = None  # it died before it had read its request
        job = host.job
        if frame is None or job is None:
            self.selector.unregister(host.socket)  # its end; the pidfd tells the rest
            return
        if job.child is not None and job.child.end_why:
            return  # too late: it has been told to end
        failpoints.hit("host-answered")
        answer, job.value = (frame[0], frame[1] or job.value)
        self._limit_memory(host, job, answer.get("rss_mb"))
        host.release()
        if host.operation == "fetch":
            self.near.fetched(job, bool(answer.get("info")), answer.get("message", ""))
        elif not answer["ok"]:
            job.facts["paths"] = answer.get("paths", ())
            self._finish(job, answer["reason"], answer["message"])
        elif host.operation == "function":
            job.facts["max_rss_mb"] = answer.get("max_rss_mb")
            self._after_work(job)
        else:
            job.facts["info"] = answer["info"]
            self._finish(job)
        self._next_service()

    def _limit_memory(self, host: Host, job: Job, rss_mb: float | None) -> None:
        """Replace a process that holds more than its function may leave behind."""
        limit = job.attempt.max_rss_gb
        if host.operation == "function" and limit is not None and rss_mb is not None and rss_mb > 1024 * limit:
            held = f"its process held {rss_mb / 1024:.2f} GB after this call, more than max_rss_gb = {limit:g}"
            job.log.write("stderr", f"[rose-hpc] {held}: the next call begins in a fresh one\n".encode())
            host.retire()

    def _host_ended(self, host: Host) -> None:
        code = host.child.reap()
        if host.socket in self.selector.get_map():
            self.selector.unregister(host.socket)
        host.socket.close()
        if host is self.service:
            self.service = None
        else:
            self.hosts.remove(host)
        if host.job is not None:
            reason, message = why_it_ended(host.child, code, host.job.attempt.timeout_s)
            if host.operation == "fetch":
                self.near.fetched(host.job, copied=False, problem=f"copying it {message}")
                self._next_service()
                return
            if host.operation != "function" and reason not in ("timeout", "cancelled", "stopped"):
                reason, message = ("shard", f"reading its shard crashed: {message}")
            self._finish(host.job, reason, message)
        self._next_service()

    def _finish(self, job: Job, reason: str = "", message: str = "") -> None:
        seconds = time.monotonic() - job.started
        self._next_of(job.lane)  # first: its process need not wait until this one's end is told
        note = f"{job.attempt.id}: {message} after {seconds:.1f} s" if reason else ""
        tail = job.log.tail
        job.log.close(note)
        message = "; ".join(part for part in (message, job.log.problem) if part)
        outcome = Outcome(
            job.attempt.id,
            ok=not reason,
            reason=reason,
            message=message,
            seconds=round(seconds, 4),
            node=self.node,
            stdout=job.log.stdout if job.attempt.kind == "command" else "",
            tail=tail,
            **job.facts,
        )
        del self.jobs[job.attempt.id]
        failpoints.hit("attempt-done")
        self._say_done(outcome, job.value if outcome.ok else b"")

    def _next_of(self, lane: int) -> None:
        if lane and (order := self.behind.next(lane)) is not None:
            self.start(*order, lane)

    def _say_done(self, outcome: Outcome, value: bytes) -> None:
        self._say({"op": "done", "outcome": outcome.to_json()}, value)
        failpoints.hit("attempt-reported")

    def _say(self, message: Mapping[str, Any], value: bytes = b"") -> None:
        """Tell the driver, soon; and sooner than what has already been said, if that can wait for longer."""
        wait_s = _STARTED_S if message["op"] == "started" else _MORE_S if self.behind.count else 0.0
        self._said.append((message, value))
        self._tell_at = min(self._tell_at, time.monotonic() + wait_s)

    def _tell(self) -> None:
        said, self._said, self._tell_at = self._said, [], float("inf")
        ended = {message["outcome"]["id"] for message, _ in said if message["op"] == "done"}
        for message, value in said:
            if message["op"] != "started" or message["id"] not in ended:
                self.report(message, value)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def run(self, every: Callable[[], None] | None = None, every_s: float = float("inf")) -> None:
        """Until told to stop; ``every`` is called about every ``every_s`` seconds."""
        next_call, next_look = time.monotonic() + every_s, time.monotonic() + STOPPED_LOOK_S
        while not self.done:
            now = time.monotonic()
            due = min([child.timers(now) for child in self.children], default=float("inf"))
            due = min(due, self._tell_at, self.behind.due(), next_call, next_look if self.jobs else float("inf"))
            wait = due - now
            for key, _ in self.selector.select(None if wait == float("inf") else max(0.0, wait)):
                if self.selector.get_map().get(key.fd) is key:  # an earlier event of this round may have ended it
                    key.data()
            for identifier in self.behind.send_back() if self.behind.count else ():
                self._say({"op": "sent-back", "id": identifier})
            if self._said and time.monotonic() >= self._tell_at:
                self._tell()
            self.after_round()
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + STOPPED_LOOK_S
                self._end_stopped()
            if every is not None and time.monotonic() >= next_call:
                next_call = time.monotonic() + every_s
                every()

    def _end_stopped(self) -> None:
        """End what somebody has stopped, and nobody lets go on. We are stopped with it where a whole job is."""
        for job in self.jobs.values():
            if (child := job.child) is not None and not child.end_why:
                child.stopped = child.stopped + 1 if is_stopped(child.pid) else 0
                if child.stopped >= STOPPED_LOOKS:
                    child.ask_to_end("stopped", time.monotonic())

    def kill_everything(self) -> None:
        """Now: the driver is gone."""
        for child in self.children:
            child.signal(signal.SIGKILL)
        if self._adopts:
            end_all_orphans({child.pid for child in self.children}, timeout_s=2.0)
        self.near.remove()
        self.done = True
