"""Merges in parts, each by a supervisor of its own: the same bank, and what happens when one of them is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import shards
from hub_nodes import Cluster, play

from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.merging import Way, merge
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.failpoints import VARIABLE

#: three columns of several chunks each, so that parts meet inside of chunks and inside of shards
LENGTHS = [100_000, 0, 1, 700_000, 250_000]


class Engine:
    """The pool of a cluster, as an engine."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes: list[str] = []

    async def run(self, attempt: Attempt) -> tuple[Outcome, None]:
        outcome, _ = await self.cluster.pool.run(attempt)
        self.nodes.append(outcome.node)
        return outcome, None


def attempt(paths: list[Path], bank: Path, **fields: Any) -> Attempt:
    """A merge of these shards, as they were recorded."""
    arguments = {
        **{"phase": "whole", "way": "nodes", "bank": str(bank), "verify": True, "workers": 2, "fsync": True},
        "shards": {str(path): read_info(path).digest for path in paths},
        "attributes": {"run": "r", "iteration": 3},
    }
    return Attempt(
        id=bank.stem, kind="merge", merge={**arguments, **fields}, cores=2, log=str(bank.with_suffix(".log"))
    )


def test_parts_on_several_nodes_make_the_same_bank(tmp_path: Path) -> None:
    """Three nodes fill a bank that is equal to the one a single process makes, unverified too, and leave nothing."""
    paths = shards.write_all(tmp_path, LENGTHS, width=8)
    alone = merge_shards(paths, tmp_path / "alone.h5", workers=1, attributes={"run": "r", "iteration": 3})
    way = Way("nodes", 3, 2, 2)

    async def scenario(cluster: Cluster) -> None:
        engine: Any = Engine(cluster)
        outcome = await merge(engine, attempt(paths, tmp_path / "together.h5"), way)
        assert outcome.ok, outcome.message
        assert set(engine.nodes[1:4]) == {"n1", "n2", "n3"}
        together = read_info(tmp_path / "together.h5")
        assert replace(together, path=alone.path, bytes=alone.bytes) == alone
        assert outcome.info is not None
        assert (outcome.info["digest"], set(outcome.info["returns"])) == (alone.digest, set(alone.shard_names))

        unseen = await merge(engine, attempt(paths, tmp_path / "unseen.h5", verify=False), way)
        assert unseen.ok, unseen.message

    play(scenario, Cluster(tmp_path), "n1", "n2", "n3")
    whole = shards.columns_of(tmp_path / "alone.h5")
    unseen = shards.columns_of(tmp_path / "unseen.h5")
    assert all((whole[name] == unseen[name]).all() for name in whole)
    assert not list(tmp_path.glob("*.parts"))
    log = (tmp_path / "together.log").read_text()
    assert all(f"{node}: its part in" in log for node in ("n1", "n2", "n3")), log
    assert "nodes: 1050001 rows" in log


def test_damage_is_named_whoever_finds_it(tmp_path: Path) -> None:
    """Damaged shards that different nodes copy, and one that two nodes share, are named in one outcome."""
    paths = shards.write_all(tmp_path, LENGTHS, width=8)
    bad = [paths[0], paths[3], paths[4]]
    damaged = attempt(paths, tmp_path / "bank.h5")
    for path in bad:
        offset = read_info(path).columns["rewards"].offset
        data = bytearray(path.read_bytes())
        data[offset + 5] ^= 4
        path.write_bytes(data)

    async def scenario(cluster: Cluster) -> None:
        engine: Any = Engine(cluster)
        outcome = await merge(engine, damaged, Way("nodes", 2, 1, 2))
        assert (outcome.reason, list(outcome.paths)) == ("damaged", [str(path) for path in bad])

    play(scenario, Cluster(tmp_path), "n1", "n2")
    assert not list(tmp_path.glob("*.parts"))


def test_a_node_that_is_lost_while_it_copies(tmp_path: Path) -> None:
    """The merge is lost with the node; begun anew on what is left, under another name, it makes the bank."""
    paths = shards.write_all(tmp_path, LENGTHS)

    async def scenario(cluster: Cluster) -> None:
        engine: Any = Engine(cluster)
        outcome = await merge(engine, attempt(paths, tmp_path / "first.h5"), Way("nodes", 2, 1, 2))
        assert (outcome.reason, outcome.node) == ("lost", "n2"), outcome
        again = await merge(engine, attempt(paths, tmp_path / "second.h5"), Way("nodes", 2, 1, 2))
        assert again.ok, again.message

    cluster = Cluster(tmp_path)
    cluster.env_of["n2"] = {VARIABLE: "attempt-received"}  # n1 begins; with its part n2 dies
    play(scenario, cluster, "n1", "n2")
    assert read_info(tmp_path / "second.h5").digest == merge_shards(paths, tmp_path / "alone.h5").digest


def test_a_stream_goes_on_wherever_there_is_room(tmp_path: Path) -> None:
    """What one node has begun another goes on with, and a third ends; the bank is that of a single process."""
    paths = shards.write_all(tmp_path, LENGTHS, width=8)
    alone = merge_shards(paths, tmp_path / "alone.h5", workers=1, attributes={"run": "r", "iteration": 3})

    async def scenario(cluster: Cluster) -> None:
        async def on(node: str, each: Attempt) -> Outcome:
            (client,) = [client for client in cluster.hub.clients.values() if client.node == node]
            return (await client.run(each))[0]

        for node, numbers in (("n1", [3, 1]), ("n2", [0]), ("n3", [])):
            given = [paths[number] for number in numbers] or paths
            phase = {"phase": "stream", "rows": LENGTHS, "numbers": numbers} if numbers else {"phase": "stream-end"}
            each = attempt(given, tmp_path / "bank.h5", **phase)
            outcome = await on(node, replace(each, id=node))
            assert (outcome.ok, outcome.node) == (True, node), outcome.message
        assert outcome.info is not None
        assert outcome.info["digest"] == alone.digest

    play(scenario, Cluster(tmp_path), "n1", "n2", "n3")
    bank = read_info(tmp_path / "bank.h5")
    assert replace(bank, path=alone.path, bytes=alone.bytes) == alone
