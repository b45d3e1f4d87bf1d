"""The driver's end of supervisors on other nodes: one authenticated, encrypted ZeroMQ socket they all connect to.

CURVE keys are made for every driver anew and lie in one file of mode 0600; a supervisor proves that it could read it.
Only plain data and, over this channel alone, pickled functions and values travel. A driver that dies is noticed by the
supervisors' own connections; a supervisor that dies or hangs, or whose node is lost, is noticed here by its silence.
"""

from __future__ import annotations

import asyncio
import fcntl
import hmac
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from rose_hpc.execution.client import Client
from rose_hpc.execution.remote import BEAT_S

log = logging.getLogger(__name__)

#: a supervisor is lost after so long a silence
SILENCE_S = 20.0
#: a silent one that cannot be reached either has this long to connect again: its process, not its node, is gone
UNREACHABLE_S = 6.0
_SIOCGIFADDR = 0x8915


class RemoteClient(Client):
    """One supervisor, as the hub knows it."""

    def __init__(self, hub: Hub, identity: bytes, join: Mapping[str, Any]) -> None:
        super().__init__()
        self.identity = identity
        self.node = str(join["node"])
        self.cores = int(join["cores"])
        self.gpus = [str(name) for name in join["gpus"]]
        self.silent_s = 0.0
        self.unreachable_s = 0.0
        self._hub = hub

    def heard(self) -> None:
        """It lives."""
        self.silent_s = self.unreachable_s = 0.0

    async def _send(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        known = self.identity in self._hub.clients
        if not (known and await self._hub.send(self.identity, message, payload)) and message["op"] == "run":
            self.lose_one(message["attempt"]["id"], "its node could not be reached")


class Hub:
    """Accepts supervisors; tells of each that joins or is lost.

    Args:
        keys: the file (made with mode 0600, removed by :meth:`close`) from which supervisors learn where to connect.
        joined: called with every new supervisor.
        lost: called with every one that is gone, and why.
    """

    def __init__(
        self, keys: Path, joined: Callable[[RemoteClient], None], lost: Callable[[RemoteClient, str], None]
    ) -> None:
        self.keys = keys
        self.clients: dict[bytes, RemoteClient] = {}
        self._joined = joined
        self._lost = lost
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._authenticator: AsyncioAuthenticator | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, facts: Mapping[str, Any]) -> None:
        """Listen, and write the keys' file; ``facts`` (plain data) go into it for the supervisors."""
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=_Only(client_public))
        router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.curve_server = True
        router.curve_secretkey, router.curve_publickey = server_secret, server_public
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)  # who comes back is heard, though its old connection seems to stand
        router.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        port = router.bind_to_random_port("tcp://*")
        self._socket = router
        secret = {
            "endpoints": [f"tcp://{address}:{port}" for address in _addresses()],
            "server": server_public.decode(),
            "public": client_public.decode(),
            "secret": client_secret.decode(),
            **facts,
        }
        fd = os.open(self.keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(secret, file)
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]

    async def send(self, identity: bytes, message: Mapping[str, Any], payload: bytes) -> bool:
        """To one supervisor; False when there is no connection to it."""
        if self._socket is None:
            return False
        try:
            await self._socket.send_multipart([identity, json.dumps(message).encode(), payload])
        except zmq.ZMQError as error:
            log.info("a message to %s was not sent: %s", identity.decode(errors="replace"), error)
            return False
        return True

    async def _listen(self) -> None:
        assert self._socket is not None  # noqa: S101 - start() made it
        while True:
            identity, body, payload = await self._socket.recv_multipart()
            message = json.loads(body)
            client = self.clients.get(identity)
            if message["op"] == "join" and client is None:
                client = RemoteClient(self, identity, message)
                self.clients[identity] = client
                await self.send(identity, {"op": "welcome"}, b"")
                self._joined(client)
            elif client is None:
                await self.send(identity, {"op": "end"}, b"")  # it was given up for lost, and its work begun elsewhere
                continue
            client.heard()
            if message["op"] == "leave":
                self.forget(client, f"node {client.node} was told to end: its job is cancelled, or its time is over")
            elif message["op"] not in ("join", "beat"):
                client.handle(message, payload)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for client in list(self.clients.values()):
                # Counted, not measured: a loop that was busy for a minute has not listened for a minute
                client.silent_s += BEAT_S
                if client.silent_s > 2 * BEAT_S and not await self.send(client.identity, {"op": "beat"}, b""):
                    client.unreachable_s += BEAT_S
                if client.silent_s > SILENCE_S:
                    self.forget(client, f"node {client.node} has not been heard of for {SILENCE_S:g} s")
                elif client.unreachable_s >= UNREACHABLE_S:
                    self.forget(client, f"the connection to node {client.node} is gone")

    def forget(self, client: RemoteClient, why: str) -> None:
        """Give a supervisor up: whoever waits for it is told."""
        if self.clients.pop(client.identity, None) is not None:
            client.lose(why)
            self._lost(client, why)

    async def close(self) -> None:
        """Tell every supervisor to end, and stop listening; idempotent."""
        for client in list(self.clients.values()):
            await self.send(client.identity, {"op": "end"}, b"")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in list(self.clients.values()):
            client.lose("the engine was shut down")
        self.clients.clear()
        if self._socket is not None:
            self._socket.close(linger=500)
            self._socket = None
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()
        self.keys.unlink(missing_ok=True)


class _Only:
    """A credentials provider that knows one key."""

    def __init__(self, public: bytes) -> None:
        self._key = public

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the peer has the key (both as Z85 text)."""
        del domain
        return hmac.compare_digest(key, self._key)


def _addresses() -> list[str]:
    """Where this host may be reached, the likeliest first: its name, and the address of each of its interfaces."""
    names = [socket.gethostname()]
    with suppress(OSError):
        names += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, interface in socket.if_nameindex():
            with suppress(OSError):  # one that is down, or has no such address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()))
                names.append(socket.inet_ntoa(answer[20:24]))
    loopback = [name for name in names if name.startswith("127.")]  # last: on other nodes it is somebody else
    return list(dict.fromkeys([*(name for name in names if name not in loopback), *loopback, "127.0.0.1"]))
