"""A hub and its supervisors on this host, each as if it were on a node of its own: an engine without a pilot."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.hub import Hub, RemoteClient
from rose_hpc.execution.local import search_path
from rose_hpc.execution.pool import Pool

WAIT_S = 30.0


class Cluster:
    """A hub, its pool, and a supervisor for each pretended node.

    Attributes:
        env: of all supervisors; ``env_of`` of one of them besides.
        lost: what was said of those that are gone.
    """

    def __init__(self, folder: Path, cores: int = 2, **env: str) -> None:
        self.folder = folder
        self.cores = cores
        self.env = env
        self.env_of: dict[str, dict[str, str]] = {}
        self.pool = Pool()
        self.lost: list[str] = []
        self.hub = Hub(folder / "keys.json", self._joined, self._lost)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _joined(self, client: RemoteClient) -> None:
        self.pool.add(client, client.cores, client.gpus, client.memory_mb)

    def _lost(self, client: RemoteClient, why: str) -> None:
        self.lost.append(why)
        self.pool.remove(client)

    async def start(self, *nodes: str) -> None:
        await self.hub.start({"cores_per_node": self.cores, "path": search_path(), "environment": {}})
        for node in nodes:
            self.processes[node] = supervisor(
                self.folder / "keys.json", SLURMD_NODENAME=node, **self.env, **self.env_of.get(node, {})
            )
        await until(lambda: len(self.hub.clients) == len(nodes))

    async def run(self, name: str, *argv: str, **fields: Any) -> Outcome:
        attempt = Attempt(id=name, kind="command", argv=argv, cwd=str(self.folder), **fields)
        return (await self.pool.run(attempt))[0]

    async def close(self) -> None:
        await self.hub.close()
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            await asyncio.to_thread(process.wait, WAIT_S)


def supervisor(keys: Path, **env: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "rose_hpc.execution.rank", "--connect", str(keys).encode().hex()]
    return subprocess.Popen(argv, env={**os.environ, **env})


async def until(what: Callable[[], Any], seconds: float = WAIT_S) -> None:
    """Return as soon as ``what`` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.02)


def play(scenario: Callable[[Cluster], Awaitable[None]], cluster: Cluster, *nodes: str) -> None:
    """Run a scenario on a cluster of these nodes; every supervisor must have ended by itself afterwards."""

    async def main() -> None:
        try:
            await cluster.start(*nodes)
            await scenario(cluster)
        finally:
            await cluster.close()

    try:
        asyncio.run(main())
    finally:
        for process in cluster.processes.values():
            process.kill()
            process.wait()
