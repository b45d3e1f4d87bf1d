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
from rose_hpc.execution.frames import pack, unpack
from rose_hpc.execution.remote import BEAT_S

log = logging.getLogger(__name__)

#: a supervisor is lost after so long a silence
SILENCE_S = 20.0
#: a silent one that cannot be reached either has this long to connect again: its process, not its node, is gone
UNREACHABLE_S = 6.0
#: messages taken at once before others in the event loop have their turn
_AT_ONCE = 256
_SIOCGIFADDR = 0x8915


class RemoteClient(Client):
    """One supervisor, as the hub knows it."""

    def __init__(self, hub: Hub, identity: bytes, join: Mapping[str, Any]) -> None:
        super().__init__()
        self.identity = identity
        self.node = str(join["node"])
        self.cores = int(join["cores"])
        self.gpus = [str(name) for name in join["gpus"]]
        self.memory_mb = float(join["memory_mb"])
        self.silent_s = 0.0
        self.unreachable_s = 0.0
        self._hub = hub
        self._heard: list[str] = []

    def heard(self) -> None:
        """It lives."""
        self.silent_s = self.unreachable_s = 0.0

    def handle(self, message: Mapping[str, Any], payload: bytes) -> None:
        """One message of the supervisor; of an outcome it is told that it was heard."""
        if message["op"] == "beat":
            self.compare(message["running"], message["known"])
            return
        super().handle(message, payload)
        if message["op"] == "done":
            self._heard.append(message["outcome"]["id"])

    def confirm(self) -> None:
        """Tell it which outcomes were heard."""
        if self._heard:
            self.post({"op": "heard", "ids": self._heard})
            self._heard = []

    def _write(self, data: bytes) -> bool:
        return self.identity in self._hub.clients and self._hub.send(self.identity, data)


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
        self._socket: zmq.Socket[bytes] | None = None
        self._authenticator: AsyncioAuthenticator | None = None
        self._watching: asyncio.Task[None] | None = None
        self._draining: asyncio.Handle | None = None

    async def start(self, facts: Mapping[str, Any]) -> None:
        """Listen, and write the keys' file; ``facts`` (plain data) go into it for the supervisors."""
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=_Only(client_public))
        router = zmq.Socket(self._context, zmq.ROUTER)  # a plain one: asyncio's makes a future of every message
        router.linger = 0
        router.sndhwm = router.rcvhwm = 0  # an attempt is one message: there are never more than attempts
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
        asyncio.get_running_loop().add_reader(int(router.getsockopt(zmq.FD)), self._drain)
        self._watching = asyncio.create_task(self._watch())
        self._drain()

    def send(self, identity: bytes, data: bytes) -> bool:
        """Packed messages to one supervisor; False when there is no connection to it."""
        if self._socket is None:
            return False
        try:
            self._socket.send_multipart([identity, data], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.info("a message to %s was not sent: %s", identity.decode(errors="replace"), error)
            return False
        finally:
            self._look_again()  # what came while we sent is not told of any more
        return True

    def _look_again(self) -> None:
        if self._socket is None or self._draining is not None:
            return
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._draining = asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        """Take what has come; ZeroMQ tells of it once, so all of it, but not more at a time than others can wait."""
        self._draining = None
        for _ in range(_AT_ONCE):
            if self._socket is None:
                return
            try:
                identity, data = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            for message, payload in unpack(data):
                self._heard(identity, message, payload)
        self._look_again()

    def _heard(self, identity: bytes, message: Mapping[str, Any], payload: bytes) -> None:
        client = self.clients.get(identity)
        if message["op"] == "join" and client is None:
            client = RemoteClient(self, identity, message)
            self.clients[identity] = client
            client.post({"op": "welcome"})
            self._joined(client)
        elif client is None:
            self.send(identity, pack({"op": "end"}))  # it was given up for lost, and its work begun elsewhere
            return
        client.heard()
        if message["op"] == "leave":
            self.forget(client, f"node {client.node} was told to end: its job is cancelled, or its time is over")
        elif message["op"] != "join":
            client.handle(message, payload)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for client in list(self.clients.values()):
                # Counted, not measured: a loop that was busy for a minute has not listened for a minute
                client.silent_s += BEAT_S
                client.confirm()
                if client.silent_s > 2 * BEAT_S and not self.send(client.identity, pack({"op": "beat"})):
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
            self.send(client.identity, pack({"op": "end"}))
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for client in list(self.clients.values()):
            client.lose("the engine was shut down")
        self.clients.clear()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(int(self._socket.getsockopt(zmq.FD)))
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
