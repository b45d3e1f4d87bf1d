"""The hub and its supervisors on this host, without a pilot: who joins, what travels, and what happens to whom."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import cloudpickle
import projects
import pytest
import zmq
from hub_nodes import WAIT_S, Cluster, play, supervisor, until
from tcp_proxy import Proxy
from zmq.utils.monitor import recv_monitor_message

from rose_hpc.errors import UsageError
from rose_hpc.execution import hub as hub_module
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.calls import Packer


def test_supervisors_join_with_what_their_nodes_have(tmp_path):
    """Each supervisor joins under its node's name with its cores and GPUs; nobody else can read where to."""

    async def scenario(cluster: Cluster) -> None:
        seen = {(client.node, client.cores, tuple(client.gpus)) for client in cluster.hub.clients.values()}
        assert seen == {("n1", 2, ("3", "5")), ("n2", 2, ("3", "5"))}
        assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
        outcomes = await asyncio.gather(*[cluster.run(str(i), "sh", "-c", "echo $SLURMD_NODENAME") for i in range(4)])
        assert [(o.ok, o.node, o.stdout) for o in outcomes] == [(True, n, f"{n}\n") for n in ("n1", "n1", "n2", "n2")]

    cluster = Cluster(tmp_path, CUDA_VISIBLE_DEVICES="3,5")
    play(scenario, cluster, "n1", "n2")
    assert not (tmp_path / "keys.json").exists()
    assert [process.returncode for process in cluster.processes.values()] == [0, 0]


def test_gpus_are_shared_out(tmp_path):
    """Attempts that ask for GPUs see theirs and no other; half a GPU each, and two share one; too many are refused."""

    async def scenario(cluster: Cluster) -> None:
        show = ("sh", "-c", "echo $CUDA_VISIBLE_DEVICES; until test -e go; do sleep 0.02; done")
        running = [asyncio.create_task(cluster.run(f"{g}.{i}", *show, gpus=g)) for i, g in enumerate((0.5, 1, 0.5))]
        await until(lambda: len(cluster.pool.slots.free) and cluster.pool.slots.free[client] == 1)
        (tmp_path / "go").touch()
        assert [outcome.stdout.strip() for outcome in await asyncio.gather(*running)] == ["3", "5", "3"]
        with pytest.raises(UsageError, match="3 GPUs on a node"):
            await cluster.run("many", "true", gpus=3)

    cluster = Cluster(tmp_path, cores=4, CUDA_VISIBLE_DEVICES="3,5")

    async def with_client(cluster: Cluster) -> None:
        nonlocal client
        (client,) = cluster.hub.clients.values()
        await scenario(cluster)

    client: Any = None
    play(with_client, cluster, "n1")


def stranger(keys: dict[str, Any], curve: bool) -> zmq.Socket[bytes]:
    """A socket that speaks to the hub with keys of its own, or none."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    if curve:
        public, secret = zmq.curve_keypair()
        socket.curve_serverkey = keys["server"].encode()
        socket.curve_publickey, socket.curve_secretkey = public, secret
    return socket


@pytest.mark.parametrize("curve", [True, False], ids=["wrong key", "no key"])
def test_strangers_are_refused(tmp_path, curve):
    """Whoever could not read the keys' file is turned away in the handshake, and nothing it says is heard."""
    refusals = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED

    async def scenario(cluster: Cluster) -> None:
        keys = json.loads((tmp_path / "keys.json").read_bytes())
        socket = stranger(keys, curve)
        monitor = socket.get_monitor_socket(refusals | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        socket.connect(keys["endpoints"][-1])
        socket.send_multipart([json.dumps({"op": "join", "node": "evil", "cores": 64, "gpus": []}).encode(), b""])
        await until(lambda: monitor.poll(0))
        assert recv_monitor_message(monitor)["event"] & refusals
        socket.disable_monitor()
        monitor.close()
        socket.close()
        assert (await cluster.run("a", "true")).ok
        assert {client.node for client in cluster.hub.clients.values()} == {"n1"}

    play(scenario, Cluster(tmp_path), "n1")


def test_a_killed_supervisor_loses_its_attempts_and_no_others(tmp_path):
    """What ran there ends as lost, soon; what runs elsewhere goes on; its processes are gone; what waits finds room."""

    async def scenario(cluster: Cluster) -> None:
        wait = ("sh", "-c", "touch up.$ROSE_HPC_ATTEMPT; until test -e go; do sleep 0.02; done")
        running = {i: asyncio.create_task(cluster.run(str(i), *wait)) for i in range(4)}
        await until(lambda: len(list(tmp_path.glob("up.*"))) == 4)
        waiting = asyncio.create_task(cluster.run("5", *wait, cores=2))
        cluster.processes["n1"].kill()
        lost = [await running[0], await running[1]]
        assert [(o.ok, o.reason) for o in lost] == [(False, "lost")] * 2
        assert "the connection to node n1 is gone" in lost[0].message
        assert cluster.lost == ["the connection to node n1 is gone"]
        (tmp_path / "go").touch()
        kept = await asyncio.gather(running[2], running[3], waiting)
        assert [(o.ok, o.node) for o in kept] == [(True, "n2")] * 3

    play(scenario, Cluster(tmp_path), "n1", "n2")
    assert projects.processes_of(tmp_path) == []


def test_a_frozen_supervisor_is_given_up_and_ends_when_it_thaws(tmp_path, monkeypatch):
    """A node that says nothing is lost even while its connection stands; should it come back, it ends its work."""
    monkeypatch.setattr(hub_module, "SILENCE_S", 4.0)

    async def scenario(cluster: Cluster) -> None:
        running = asyncio.create_task(cluster.run("a", "sh", "-c", "touch up; exec sleep 300"))
        await until((tmp_path / "up").exists)
        process = cluster.processes["n1"]
        process.send_signal(signal.SIGSTOP)
        assert (await running).message.endswith("node n1 has not been heard of for 4 s")
        process.send_signal(signal.SIGCONT)
        await until(lambda: process.poll() is not None)

    play(scenario, Cluster(tmp_path), "n1")
    assert projects.processes_of(tmp_path) == []


def test_a_busy_driver_loses_nobody(tmp_path, monkeypatch):
    """A program that keeps the event loop busy for longer than a silence may last hears its supervisors afterwards."""
    monkeypatch.setattr(hub_module, "SILENCE_S", 3.0)

    async def scenario(cluster: Cluster) -> None:
        time.sleep(4.0)
        for i in range(20):
            assert (await cluster.run(str(i), "true")).ok
        assert cluster.lost == []

    play(scenario, Cluster(tmp_path), "n1")


def test_functions_and_their_values_travel(tmp_path):
    """A function is called in a process on the node, with values of any kind, and its value comes back."""

    async def scenario(cluster: Cluster) -> None:
        def function(values: Any) -> Any:
            return {"pid": os.getpid(), "node": os.environ["SLURMD_NODENAME"], "values": values}

        payload = Packer().pack((function, ({1, 2, 3},), {}))
        attempt = Attempt(id="f", kind="function", cwd=str(tmp_path))
        outcome, value = await cluster.pool.run(attempt, payload)
        assert outcome.ok, outcome
        answer = cloudpickle.loads(value)
        assert (answer["node"], answer["values"]) == ("n1", {1, 2, 3})
        assert answer["pid"] not in (os.getpid(), cluster.processes["n1"].pid)

    play(scenario, Cluster(tmp_path), "n1")


def test_a_cancelled_attempt_is_gone(tmp_path):
    """When the cancellation of an attempt is over, so are its processes, and its cores are free."""

    async def scenario(cluster: Cluster) -> None:
        running = asyncio.create_task(cluster.run("a", "sh", "-c", "touch up; exec sleep 300"))
        await until((tmp_path / "up").exists)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert cluster.pool.slots.free == cluster.pool.slots.total

    play(scenario, Cluster(tmp_path), "n1")


DRIVER = """
import asyncio, sys
from pathlib import Path
from rose_hpc.execution.attempt import Attempt
from rose_hpc.execution.hub import Hub
from rose_hpc.execution.pool import Pool

async def main():
    pool = Pool()
    ready = asyncio.Event()
    hub = Hub(Path("keys.json"), lambda c: (pool.add(c, c.cores), ready.set()), lambda c, why: None)
    await hub.start({"cores_per_node": 2, "path": sys.path, "environment": {}})
    await ready.wait()
    await pool.run(Attempt(id="a", kind="command", argv=("sh", "-c", "touch up; exec sleep 300"), cwd=sys.argv[1]))

asyncio.run(main())
"""


def test_supervisors_end_when_their_driver_is_killed(tmp_path):
    """SIGKILL of the driver ends every supervisor and what it runs, without anybody telling them."""
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVER))
    with subprocess.Popen([sys.executable, "driver.py", str(tmp_path)], cwd=tmp_path) as driver:
        try:
            projects.wait_for((tmp_path / "keys.json").exists)
            process = supervisor(tmp_path / "keys.json", SLURMD_NODENAME="n1", PWD=str(tmp_path))
            projects.wait_for((tmp_path / "up").exists)
        finally:
            driver.kill()
    try:
        process.wait(WAIT_S)
        projects.wait_for(lambda: not projects.processes_of(tmp_path), 10)
    finally:
        process.kill()
        process.wait()


FAKE_SRUN = """#!/bin/sh
echo "$@"
env | grep ^SLURM | sort
touch up
until test -e go; do sleep 0.02; done
"""


def srun_folder(tmp_path: Path) -> str:
    """A PATH on which srun says how it was called, and waits."""
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text(FAKE_SRUN)
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def test_ranks_of_one_program_get_whole_nodes(tmp_path):
    """Ranks that one node cannot hold get whole nodes, once those are idle, and srun finds none of Slurm's options."""

    async def scenario(cluster: Cluster) -> None:
        narrow = asyncio.create_task(cluster.run("narrow", "sh", "-c", "touch begun; until test -e up; do :; done"))
        await until((tmp_path / "begun").exists)
        wide = asyncio.create_task(cluster.run("wide", "./solver", "x y", ranks=3, cores=6))
        await until((tmp_path / "up").exists)
        assert list(cluster.pool.slots.free.values()).count(0) >= 2  # two nodes of four cores are one rank's more
        (tmp_path / "go").touch()
        outcome = await wide
        assert (await narrow).ok
        first, *slurm = outcome.stdout.splitlines()
        assert first == (
            "--nodes=2 --ntasks=3 --ntasks-per-node=2 --cpus-per-task=2 --nodelist=n2,n3 "
            "--overlap --cpu-bind=none --mem=0 --export=ALL --kill-on-bad-exit=1 ./solver x y"
        )
        assert slurm == ["SLURM_JOB_ID=7"]

    env = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "9", "SLURM_STEP_ID": "1"}
    play(scenario, Cluster(tmp_path, cores=4, PATH=srun_folder(tmp_path), **env), "n1", "n2", "n3")


def test_a_program_is_lost_with_any_of_its_nodes(tmp_path):
    """An attempt over two nodes ends as lost when either is, and the node that is left is free again."""

    async def scenario(cluster: Cluster) -> None:
        wide = asyncio.create_task(cluster.run("wide", "./solver", ranks=4, cores=4))
        await until((tmp_path / "up").exists)
        cluster.processes["n2"].kill()
        outcome = await wide
        assert (outcome.reason, outcome.message) == ("lost", "was lost: it ran on n2 too")
        assert list(cluster.pool.slots.free.values()) == [2]

    path = srun_folder(tmp_path)
    play(scenario, Cluster(tmp_path, PATH=path, SLURM_PROCID="0"), "n1", "n2")
    assert projects.processes_of(tmp_path / "up") == []


def test_what_a_broken_connection_lost_is_sent_again(tmp_path):
    """An order, an outcome and a cancellation that were under way when a connection broke come through, each once."""

    async def scenario(cluster: Cluster) -> None:
        keys = json.loads((tmp_path / "keys.json").read_bytes())
        proxy = Proxy(int(keys["endpoints"][0].rpartition(":")[2]))
        keys["endpoints"] = [f"tcp://127.0.0.1:{proxy.port}"]
        (tmp_path / "proxied.json").write_text(json.dumps(keys))
        cluster.processes["n1"] = supervisor(tmp_path / "proxied.json", SLURMD_NODENAME="n1")
        await until(lambda: cluster.hub.clients)
        note = 'echo "$0" >> begun; '
        ends = asyncio.create_task(
            cluster.run(
                "ends", "sh", "-c", note + "until test -e go; do sleep 0.02; done; echo ended; touch ended", "ends"
            )
        )
        stops = asyncio.create_task(cluster.run("stops", "sh", "-c", note + "exec sleep 300", "stops"))
        await until(lambda: (tmp_path / "begun").exists() and len((tmp_path / "begun").read_text().split()) == 2)
        proxy.swallows = True
        begins = asyncio.create_task(cluster.run("begins", "sh", "-c", note + "echo $0", "begins"))
        (tmp_path / "go").touch()
        await until(lambda: (tmp_path / "ended").exists())
        stops.cancel()
        before = proxy.swallowed
        await until(lambda: proxy.swallowed > before)
        proxy.break_connections()
        outcomes = [await asyncio.wait_for(task, WAIT_S) for task in (ends, begins)]
        assert [(o.ok, o.stdout) for o in outcomes] == [(True, "ended\n"), (True, "begins\n")]
        await until(lambda: not sleeping())
        assert sorted((tmp_path / "begun").read_text().split()) == ["begins", "ends", "stops"]
        assert cluster.lost == []
        proxy.close()

    def sleeping() -> list[int]:
        return [pid for pid in projects.processes_of(tmp_path) if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    play(scenario, Cluster(tmp_path, cores=3))
