"""The process that speaks to radical.pilot: ``python pilot_host.py FD``, started by :mod:`rose_hpc.execution.pilot`.

The only importer of radical.pilot. It is a process of its own because radical.pilot reads its folders from the
environment when imported, installs signal handlers, calls back from threads of its own, and may hang when it closes:
none of that belongs into the user's program. The driver and this process exchange JSON, one object a line, over the
socket ``FD``; both ends are ours and nothing is unpickled.

======== =========== ==========================================================================
from      ``op``      meaning and fields
======== =========== ==========================================================================
driver    start       first: the pilot (fields of PilotPlan), ``folder``
driver    submit      ``tasks``: list of ``id`` and the fields of TaskPlan
driver    cancel      ``id``
driver    close       end the pilot and this process; the end of the socket means the same
host      state       the pilot's ``state``; ``sandbox`` once there is one
host      ready       tasks can be submitted: ``nodes`` and ``cores_per_node`` the pilot holds
host      running     ``id``
host      done        ``id, state, exit_code, stdout, stderr, sandbox, reason``
host      ended       the pilot will run nothing more: ``state, reason, sandbox``
======== =========== ==========================================================================
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import radical.pilot as rp
import radical.utils as ru  # isort: split - before logging, which it patches to survive its forks

logger = logging.getLogger("rose_hpc.pilot_host")

_TAIL_BYTES = 64 * 1024
#: Defined in the pilot's shell before it would ask the Internet for the time, which takes 25 s behind a firewall.
_NO_NETWORK = ["'dig() { :; }'", "'ping() { :; }'"]
_UNUSED_BRIDGES = ("raptor_scheduling_queue", "client_pubsub", "client_queue")
_AGENT = "rose_hpc"
_RAISED = re.compile(r"^(\w+\.)*\w*(Error|Exception|Interrupt)\b: .+")


def tail(path: Path, limit: int = _TAIL_BYTES) -> str:
    """Return the last ``limit`` bytes of a text file, from a line's start; empty if there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            data = file.read(limit)
    except OSError:
        return ""
    if size > limit:
        data = data.partition(b"\n")[2] or data
    return data.decode(errors="replace")


def find_cause(folder: Path) -> str:
    """Return the last exception in the logs of a failed pilot, or of the client in the current folder, or nothing."""
    logs = [folder / "agent_0.err", *sorted(folder.glob("*.log")), folder / "bootstrap_0.err"]
    for path in [*logs, *sorted(Path("client").glob("*.log"))]:
        raised = [line.strip() for line in tail(path).splitlines() if _RAISED.match(line.strip())]
        if raised:
            return f"the last error logged is {raised[-1]} ({path.name})"
    return ""


def write_configs(plan: Mapping[str, Any], config_dir: Path, user_home: Path) -> None:
    """Write radical.pilot's user configuration for this session: our changes over the user's own, over what it ships.

    Args:
        plan: fields of a PilotPlan.
        config_dir: where ``RADICAL_CONFIG_USER_DIR`` points.
        user_home: where the user's own ``.radical/pilot/configs`` are.
    """
    target = config_dir / ".radical/pilot/configs"
    target.mkdir(parents=True, exist_ok=True)
    site, label = plan["resource"].split(".", 1)
    own: dict[str, Any] = {}
    for path in sorted((user_home / ".radical/pilot/configs").glob("*.json")):
        if path.name == f"resource_{site}.json":
            own = dict(ru.read_json(str(path)))
        elif not (target / path.name).exists():
            (target / path.name).symlink_to(path)
    shipped = ru.Config("radical.pilot.resource", name="*", expand=False).as_dict()
    ours = {**own.get(label, {}), **plan["resource_config"]}
    known = {**shipped.get(site, {}).get(label, {}), **ours}
    own[label] = {**ours, **resource_changes(plan, known)}
    (target / f"resource_{site}.json").write_text(json.dumps(own, indent=1))
    agent = ru.Config("radical.pilot", category="agent", name="default", expand=False).as_dict()
    for name in _UNUSED_BRIDGES:  # each is an interpreter to start, 0.4 s, before the first task
        agent["bridges"].pop(name, None)
    (target / f"agent_{_AGENT}.json").write_text(json.dumps(agent, indent=1))


def resource_changes(plan: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what we change in a resource's configuration ``known``."""
    changes: dict[str, Any] = {
        # Without a process group of its own a task cannot be cancelled, and stops the agent that tries
        "new_session_per_task": True,
        "pre_bootstrap_0": [*(known.get("pre_bootstrap_0") or ()), *_NO_NETWORK],
    }
    if known.get("agent_config", "default") == "default":
        changes["agent_config"] = _AGENT
    if plan["forks"]:  # what is shipped pretends 8 cores, a GPU and 4 GB on every laptop
        cores = plan["cores"] or plan["nodes"] * int(known.get("cores_per_node") or 1)
        changes |= {
            "cores_per_node": plan["resource_config"].get("cores_per_node", cores),
            "gpus_per_node": plan["gpus"],
            "launch_methods": {"order": _launchers(known.get("launch_methods", {}).get("order") or ["FORK"])},
            "mem_per_node": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        }
    return changes


def _launchers(order: Iterable[str]) -> list[str]:
    """Return those of ``order`` that are there: the agent would try the others, and log errors that mean nothing."""
    programs = {"MPIRUN": "mpirun", "MPIEXEC": "mpiexec", "SRUN": "srun"}
    return [name for name in order if name not in programs or shutil.which(programs[name])]


class Host:
    """Carries out what the driver asks, and tells it what radical.pilot says."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._send_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._session: Any = None
        self._manager: Any = None
        self._pilot: Any = None
        self._sandbox = Path.cwd()
        self._final = ""

    def run(self) -> None:
        """Serve the driver until it closes or goes."""
        threading.Thread(target=self._listen, daemon=True).start()
        from_driver = {"start": self._start, "submit": self._submit, "cancel": self._cancel}
        handlers = {**from_driver, "active": self._active, "ended": self._ended}
        while (message := self._inbox.get())["op"] != "close":
            try:
                handlers[message["op"]](message)
            except Exception as error:
                # whatever radical.pilot raises ends the pilot's usefulness; the driver is told, and decides
                logger.exception("radical.pilot failed")
                self._tell("ended", state="FAILED", reason=f"{type(error).__name__}: {error}")
        if self._session is not None:
            self._session.close(download=False)

    def _listen(self) -> None:
        with self._channel.makefile("rb") as lines:
            for line in lines:
                self._inbox.put(json.loads(line))
        self._inbox.put({"op": "close"})

    def _tell(self, op: str, **fields: Any) -> None:
        line = json.dumps({"op": op, "sandbox": str(self._sandbox), **fields}).encode() + b"\n"
        try:
            with self._send_lock:
                self._channel.sendall(line)
        except OSError:
            logger.info("the driver has gone; not told: %s", op)

    def _start(self, plan: dict[str, Any]) -> None:
        base = Path.cwd()
        write_configs(plan, base / "config", Path(plan["user_home"]))
        self._session = rp.Session(
            cfg={"base": str(base), "path": str(base / "client"), "client_sandbox": str(base)},
        )
        description = {
            "resource": plan["resource"],
            "runtime": plan["runtime_min"],
            "sandbox": str(base),
            "exit_on_error": False,
            **{key: plan[key] for key in ("cores", "gpus", "nodes") if plan[key]},
            **{key: plan[key] for key in ("queue", "project", "access_schema", "job_name") if plan[key]},
        }
        pilot = rp.PilotManager(self._session).submit_pilots(rp.PilotDescription(description))
        self._pilot = pilot
        self._sandbox = Path(urlsplit(str(pilot.pilot_sandbox)).path)
        pilot.register_callback(self._pilot_changed)
        self._pilot_changed(pilot)  # it may have failed before anybody listened
        # Only now: the 2.6 s this takes pass while the pilot starts
        self._manager = rp.TaskManager(self._session)
        self._manager.register_callback(self._task_changed)
        self._manager.add_pilots(pilot)

    def _submit(self, message: dict[str, Any]) -> None:
        descriptions = [
            rp.TaskDescription(
                {
                    "uid": task["id"],
                    "name": task["name"],
                    "executable": task["command"],  # goes into a script as it is; quoted by the driver
                    "ranks": task["ranks"],
                    "cores_per_rank": task["cores_per_rank"],
                    "gpus_per_rank": task["gpus_per_rank"],
                    "gpu_type": rp.CUDA if task["gpus_per_rank"] else "",
                    "mem_per_rank": task["mem_mb_per_rank"],
                    "use_mpi": task["use_mpi"],
                    "pre_launch": task["pre_launch"],
                }
            )
            for task in message["tasks"]
        ]
        self._manager.submit_tasks(descriptions)

    def _cancel(self, message: dict[str, Any]) -> None:
        self._manager.cancel_tasks(message["id"])

    def _pilot_changed(self, pilots: Any, *_: Any) -> None:
        for pilot in _listed(pilots):
            logger.info("pilot %s", pilot.state)
            if pilot.state in ("DONE", "FAILED", "CANCELED"):
                self._inbox.put({"op": "ended", "state": pilot.state})
            else:
                self._tell("state", state=pilot.state)
            if pilot.state == "PMGR_ACTIVE":
                self._inbox.put({"op": "active"})  # behind the start, which may still be under way

    def _active(self, _: dict[str, Any]) -> None:
        nodes = (self._pilot.resource_details or {}).get("node_list") or []
        self._tell("ready", nodes=len(nodes), cores_per_node=min((len(node["cores"]) for node in nodes), default=0))

    def _ended(self, message: dict[str, Any]) -> None:
        if not self._final:  # once: the callback comes twice
            self._final = message["state"]
            self._tell("ended", state=self._final, reason=find_cause(self._sandbox))

    def _task_changed(self, task: Any, state: Any = None) -> None:
        state = state or task.state
        if state == "AGENT_EXECUTING":
            self._tell("running", id=task.uid)
        elif state in ("DONE", "FAILED", "CANCELED"):
            sandbox = Path(urlsplit(str(task.task_sandbox or "")).path)
            self._tell(
                "done",
                id=task.uid,
                state=state,
                exit_code=task.exit_code,
                stdout=tail(sandbox / f"{task.uid}.out") or task.stdout or "",
                stderr=tail(sandbox / f"{task.uid}.err") or task.stderr or "",
                reason=task.exception or "",
                sandbox=str(sandbox),
            )


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]


def main(argv: list[str]) -> None:
    """Serve the socket whose descriptor is ``argv[0]``; ends by ``os._exit``, for threads of others may not end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
    channel = socket.socket(fileno=int(argv[0]))
    channel.set_inheritable(False)  # the end of this process must be the end of the socket
    try:
        Host(channel).run()
    except BaseException:
        logger.exception("the host of the pilot failed")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
