"""A supervisor on another node than its driver: it connects to the driver's hub, and ends when the hub is gone."""

from __future__ import annotations

import json
import logging
import math
import os
import selectors
import signal
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from rose_hpc.execution.frames import Frame, pack, unpack
from rose_hpc.execution.supervisor import Supervisor
from rose_hpc.execution.telling import Telling
from rose_hpc.machine import available_memory_mb

log = logging.getLogger(__name__)

#: a supervisor says that it lives this often
BEAT_S = 2.0
#: how long it may take to find out whether anybody listens at an address
PROBE_S = 3.0
#: how long the hub may take to answer at one address before the next is tried
WELCOME_S = 10.0
#: how long a broken connection may take to come back before the driver counts as dead
RECONNECT_S = 10.0
#: how often a supervisor looks what it has been told
TICK_S = 0.5


class Link:
    """The supervisor's end of the connection.

    Args:
        keys: the file the hub wrote.
        node: this host's name.

    Raises:
        ConnectionError: no address of the hub answers.
    """

    def __init__(self, keys: Path, node: str) -> None:
        self.facts: dict[str, Any] = json.loads(keys.read_bytes())
        self.broken_at: float | None = None
        self._context = zmq.Context()
        self._identity = f"{node}.{os.getpid()}.{uuid.uuid4().hex[:8]}".encode()
        join = {
            "op": "join",
            "node": node,
            "cores": self.facts["cores_per_node"],
            "gpus": visible_gpus(os.environ),
            "memory_mb": min(available_memory_mb(), self.facts.get("memory_mb") or math.inf),
        }
        for endpoint in filter(_answers, self.facts["endpoints"]):
            self._open(endpoint)
            self.send(pack(join))
            if self.socket.poll(int(WELCOME_S * 1000)):
                return
            self.socket.close(linger=0)
        raise ConnectionError(f"the driver answers at none of {', '.join(self.facts['endpoints'])}")

    def _open(self, endpoint: str) -> None:
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.identity = self._identity
        self.socket.linger = 1000
        self.socket.sndhwm = self.socket.rcvhwm = 0
        self.socket.curve_serverkey = self.facts["server"].encode()
        self.socket.curve_publickey = self.facts["public"].encode()
        self.socket.curve_secretkey = self.facts["secret"].encode()
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(endpoint)

    @property
    def fd(self) -> int:
        """What to wait for; it tells of an edge, so look whether there is more after everything that was done."""
        return int(self.socket.getsockopt(zmq.FD))

    def send(self, data: bytes) -> None:
        """To the driver: what :func:`rose_hpc.execution.frames.pack` made, of any number of messages."""
        self.socket.send(data)

    def receive(self) -> list[Frame]:
        """Whatever has come."""
        frames = []
        while self.socket.poll(0):
            frames += unpack(self.socket.recv())
        return frames

    def close(self) -> None:
        """Once what was said last is on its way, for at most a second."""
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        self._context.term()

    def driver_is_gone(self) -> bool:
        """Whether the connection broke, and has stayed so for RECONNECT_S."""
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)["event"]
            self.broken_at = time.monotonic() if event == zmq.EVENT_DISCONNECTED else None
        return self.broken_at is not None and time.monotonic() - self.broken_at > RECONNECT_S


def _answers(endpoint: str) -> bool:
    """Whether anybody listens there; ZeroMQ itself would go on trying."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), PROBE_S).close()
    except OSError:
        return False
    return True


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """The GPUs of this node that are ours, as ``CUDA_VISIBLE_DEVICES`` names them; all of them where it is not set."""
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() and name != "NoDevFiles"]
    return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


#: so many supervisors of a job see to its end, when its driver is gone; the step's first is beside the driver
_HEIRS = 4


def serve(keys: Path) -> list[str]:
    """Serve the hub that wrote ``keys`` until it says so, or is gone.

    Returns:
        what this process is to become then: arguments of ``python -m``; none: it is to end.
    """
    telling = Telling()
    supervisor = Supervisor(telling.add)
    supervisor.adopt()
    link = Link(keys, supervisor.node)
    os.environ.update(link.facts["environment"])
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ending.append(number))
    supervisor.handle({"op": "hello", "path": link.facts["path"], "service": True}, b"")
    last_beat = 0.0
    orphaned = False

    def drain() -> None:
        for message, payload in link.receive():
            if message["op"] == "end":
                supervisor.kill_everything()
            elif message["op"] == "heard":
                telling.heard(message["ids"])
            elif message["op"] not in ("welcome", "beat") and not (
                message["op"] == "run" and not telling.is_new(message["attempt"]["id"])
            ):
                supervisor.handle(message, payload)
        if told := telling.ready():
            link.send(told)

    def tick() -> None:
        nonlocal last_beat, orphaned
        if ending:
            link.send(pack({"op": "leave"}))
            supervisor.kill_everything()
        elif link.driver_is_gone():
            log.error("the driver is gone: ending")
            orphaned = True
            supervisor.kill_everything()
        elif time.monotonic() - last_beat > BEAT_S:
            last_beat = time.monotonic()
            link.send(telling.beat(supervisor.jobs, supervisor.behind))

    supervisor.selector.register(link.fd, selectors.EVENT_READ, drain)
    supervisor.after_round = drain
    drain()  # what came before anybody waited
    supervisor.run(tick, TICK_S)
    link.close()
    job = link.facts.get("own_job")
    if orphaned and job and int(os.environ.get("SLURM_PROCID", _HEIRS)) < _HEIRS:
        return ["rose_hpc.slurm.headless", job]
    return []
