"""Large policies: each node copies one once, and its ranks read it there; nothing of it stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import projects
import pytest
from hub_nodes import Cluster, play, until

from rose_hpc import publishing
from rose_hpc.failpoints import MARK_VARIABLE, VARIABLE

SHM = Path("/dev/shm")  # noqa: S108 - a folder on another file system than the run's
#: where it is, who may read it, what is in it
SHOW = (
    "sh",
    "-c",
    'echo "$ROSE_HPC_POLICY"; stat -c %a "$ROSE_HPC_POLICY/.." "$ROSE_HPC_POLICY/w"; cat "$ROSE_HPC_POLICY/w"',
)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Path]:
    """A place for copies that is not on the file system of the policy."""
    if not SHM.is_dir() or SHM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    place = SHM / f"rose-test-{os.getpid()}"
    place.mkdir()
    yield place
    publishing.remove(place)


@pytest.fixture
def policy(tmp_path: Path) -> dict[str, Any]:
    """A committed policy, as an attempt is told of it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "w").write_text("weights\n")
    (scratch / "deep").mkdir()
    (scratch / "deep" / "more").write_text("x" * 10_000)
    facts = publishing.publish_tree(scratch, tmp_path / "policy")
    return {"policy": {k: facts[k] for k in ("digest", "bytes")}, "env": {"ROSE_HPC_POLICY": str(tmp_path / "policy")}}


def test_each_node_has_one_copy_that_its_ranks_share(tmp_path: Path, local: Path, policy: dict[str, Any]) -> None:
    """Six ranks on two nodes read two read-only copies in folders nobody else can enter; afterwards there are none."""

    async def scenario(cluster: Cluster) -> None:
        outcomes = await asyncio.gather(*[cluster.run(str(n), *SHOW, **policy) for n in range(6)])
        assert all(outcome.ok and not outcome.notice for outcome in outcomes), outcomes
        said = {(outcome.node, *outcome.stdout.split()) for outcome in outcomes}
        assert {(node, *rest) for node, _, *rest in said} == {(node, "700", "444", "weights") for node in ("n1", "n2")}
        copies = {Path(where) for _, where, *_ in said}
        assert len(copies) == 2
        assert all(copy.is_relative_to(local) for copy in copies)
        assert all((copy / "deep" / "more").stat().st_size == 10_000 for copy in copies)

    play(scenario, Cluster(tmp_path, TMPDIR=str(local)), "n1", "n2")
    projects.wait_for(lambda: not list(local.iterdir()))


def test_a_newer_policy_takes_the_place_of_one_that_nobody_reads(
    tmp_path: Path, local: Path, policy: dict[str, Any]
) -> None:
    """While a rank reads the older one it stays; later it goes."""
    newer = {**policy, "env": {"ROSE_HPC_POLICY": str(tmp_path / "newer")}}
    publishing.copy_tree(tmp_path / "policy", tmp_path / "newer")
    newest = {**policy, "env": {"ROSE_HPC_POLICY": str(tmp_path / "newest")}}
    publishing.copy_tree(tmp_path / "policy", tmp_path / "newest")

    def copies() -> set[str]:
        return {path.name for path in local.glob("*/policy-*")}

    async def scenario(cluster: Cluster) -> None:
        wait = ("sh", "-c", 'touch up; until test -e go; do sleep 0.02; done; cat "$ROSE_HPC_POLICY/w"')
        waiting = asyncio.create_task(cluster.run("old", *wait, **policy))
        await until((tmp_path / "up").exists)
        assert (await cluster.run("new", *SHOW, **newer)).ok
        assert copies() == {"policy-1", "policy-2"}
        (tmp_path / "go").touch()
        assert (await waiting).stdout == "weights\n"
        assert (await cluster.run("newest", *SHOW, **newest)).ok
        assert copies() == {"policy-3"}

    play(scenario, Cluster(tmp_path, TMPDIR=str(local)), "n1")


@pytest.mark.parametrize("trouble", ["altered", "huge"])
def test_where_it_cannot_be_copied_it_is_read_where_it_is(
    tmp_path: Path, local: Path, policy: dict[str, Any], trouble: str
) -> None:
    """One rank of the node tells why, in its log too; all of them run, and half a copy does not stay."""
    if trouble == "altered":
        policy["policy"]["digest"] = "0" * 32
    if trouble == "huge":
        policy["policy"]["bytes"] = 2**60
    why = {"altered": "is not what the update left", "huge": "GB left, and it takes"}

    async def scenario(cluster: Cluster) -> None:
        logs = [tmp_path / f"{n}.log" for n in range(3)]
        outcomes = await asyncio.gather(*[cluster.run(str(n), *SHOW, **policy, log=str(logs[n])) for n in range(3)])
        assert all(o.ok and o.stdout.startswith(str(tmp_path / "policy")) for o in outcomes), outcomes
        (notice,) = [outcome.notice for outcome in outcomes if outcome.notice]
        assert why[trouble] in notice
        assert sum("[rose-hpc] the policy is read from" in log.read_text() for log in logs) == 1
        assert not list(local.glob("*/policy-*"))

    play(scenario, Cluster(tmp_path, TMPDIR=str(local)), "n1")


def test_on_the_same_disk_nothing_is_copied(tmp_path: Path, policy: dict[str, Any]) -> None:
    """A copy that is no nearer is not made, and nobody is told."""
    place = tmp_path / "here"
    place.mkdir()

    async def scenario(cluster: Cluster) -> None:
        outcome = await cluster.run("one", *SHOW, **policy)
        assert (outcome.ok, outcome.notice) == (True, "")
        assert outcome.stdout.startswith(str(tmp_path / "policy"))

    play(scenario, Cluster(tmp_path, TMPDIR=str(place)), "n1")


def test_nothing_stays_when_the_supervisor_is_killed(tmp_path: Path, local: Path, policy: dict[str, Any]) -> None:
    """Its keeper removes the copies, once those who read them are dead."""

    async def scenario(cluster: Cluster) -> None:
        running = asyncio.create_task(cluster.run("one", "sh", "-c", "touch up; sleep 600", **policy))
        await until((tmp_path / "up").exists)
        assert list(local.glob("*/policy-*"))
        cluster.processes["n1"].send_signal(signal.SIGKILL)
        await until(lambda: not list(local.iterdir()))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    play(scenario, Cluster(tmp_path, TMPDIR=str(local)), "n1")


def test_who_waits_for_a_copy_can_be_cancelled(tmp_path: Path, local: Path, policy: dict[str, Any]) -> None:
    """It ends at once while its policy is being copied; the copy goes on, for the others."""
    mark = tmp_path / "mark"

    def stopped() -> list[int]:
        pids = projects.processes_of(local)
        return [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] == "T"]

    async def scenario(cluster: Cluster) -> None:
        first, second = (asyncio.create_task(cluster.run(name, *SHOW, **policy)) for name in ("first", "second"))
        await until(lambda: mark.exists() and stopped())
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert not second.done()
        for pid in stopped():
            os.kill(pid, signal.SIGCONT)
        assert (await second).stdout.startswith(str(local))

    env = {VARIABLE: "policy-copying:1:STOP", MARK_VARIABLE: str(mark)}
    play(scenario, Cluster(tmp_path, TMPDIR=str(local), **env), "n1")


def test_a_copier_that_dies_keeps_nobody(tmp_path: Path, local: Path, policy: dict[str, Any]) -> None:
    """Its policy is then read where it is, and that is told."""

    async def scenario(cluster: Cluster) -> None:
        outcomes = await asyncio.gather(*[cluster.run(str(n), *SHOW, **policy) for n in range(2)])
        assert all(o.ok and o.stdout.startswith(str(tmp_path / "policy")) for o in outcomes), outcomes
        assert ["copying it was killed by SIGKILL" in o.notice for o in outcomes].count(True) == 1

    env = {VARIABLE: "policy-copied", MARK_VARIABLE: str(tmp_path / "mark")}
    play(scenario, Cluster(tmp_path, TMPDIR=str(local), **env), "n1")


def test_in_a_run(folder: Path, local: Path) -> None:
    """From the second iteration on environments read a copy; the run is the one it is without, and leaves none."""
    environment = """
        import pathlib, sys, rose_hpc
        task = rose_hpc.current_task()
        read = (task.policy / "weights.npz").read_bytes() if task.policy else b""
        with open(f"read-{task.iteration}", "a") as file:
            print(task.policy, file=file)
        with task.shard() as shard:
            shard.append(observation=task.rng.random(3), reward=float(sum(read) % 251))
    """
    projects.write_project(folder, environment=environment)
    for name, size in (("copied", 1e-6), ("plain", 0)):
        words = ["--set", f"loop.local_policy_mb={size}", "--run-dir", name]
        done = projects.rose_hpc("run", "config.toml", *words, cwd=folder, TMPDIR=str(local))
        assert done.returncode == 0, done.stderr
        where = {line for path in folder.glob("read-[1-9]") for line in path.read_text().split("\n") if line}
        assert {Path(path).is_relative_to(local) for path in where} == {name == "copied"}
        for path in folder.glob("read-*"):
            path.unlink()
    assert projects.essence(folder / "copied") == projects.essence(folder / "plain")
    projects.wait_for(lambda: not list(local.glob("rose-hpc-*")))
