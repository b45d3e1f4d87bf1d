"""How a merge is carried out: which way is chosen, and what happens when a part of it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.merging import Way, choose_way, file_system_of, file_system_on, merge

GB = 10**9


@pytest.mark.parametrize(
    ("size", "nodes", "asked", "workers", "way"),
    [
        (10**6, (16, 16, 16), "auto", None, Way("threads", 1, 1, 1)),  # too little for a second thread
        (GB, (16,), "auto", None, Way("threads", 1, 8, 8)),
        (GB, (2,), "auto", None, Way("threads", 1, 2, 2)),
        (GB, (16, 16), "auto", 3, Way("threads", 1, 3, 3)),  # too little for a second node
        (2 * GB, (16, 16, 16, 16), "auto", None, Way("nodes", 3, 8, 9)),
        (900 * GB, (16, 16, 16, 16), "auto", None, Way("nodes", 4, 8, 9)),
        (900 * GB, (16, 16, 16, 16), "threads", None, Way("threads", 1, 8, 8)),
        (10, (16, 16, 4), "nodes", None, Way("nodes", 2, 1, 9)),  # the small node cannot take a part
        (10, (16,), "nodes", None, Way("threads", 1, 1, 1)),
        (10, (4, 4), "mpio", 4, Way("mpio", 8, 1, 1)),
    ],
)
def test_the_way_follows_from_bytes_and_nodes(
    size: int, nodes: tuple[int, ...], asked: str, workers: int | None, way: Way
) -> None:
    """Several nodes where there is enough to copy or it is asked for; else threads, as many as are useful."""
    assert choose_way(size, nodes, asked, workers) == way


def test_nodes_do_not_share_a_file_by_themselves_where_clients_write_whole_pages() -> None:
    """On NFS and SMB several nodes write to one bank only if they are told to."""
    for file_system, name in [("lustre", "nodes"), ("", "nodes"), ("nfs4", "threads"), ("cifs", "threads")]:
        assert choose_way(900 * GB, (16, 16), file_system=file_system).name == name
    assert choose_way(900 * GB, (16, 16), "nodes", file_system="nfs").name == "nodes"


def test_the_file_system_is_the_mounts() -> None:
    """Optional fields of a mount, and spaces in its place, lead nobody astray."""
    mounts = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        "30 22 0:44 / /my\\040home rw - nfs4 server:/home rw,vers=4.2\n"
    )
    assert [file_system_on(device, mounts) for device in ("254:0", "0:44", "9:9")] == ["ext4", "nfs4", ""]
    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(Path("/no/such/place")) == ""


@given(
    size=st.integers(0, 10**14),
    nodes=st.lists(st.integers(1, 128), min_size=1, max_size=20),
    asked=st.sampled_from(["auto", "threads", "nodes", "mpio"]),
    workers=st.none() | st.integers(1, 200),
)
def test_a_way_always_fits(size: int, nodes: list[int], asked: str, workers: int | None) -> None:
    """No node gets two parts, there is a node for each, and no part asks for more cores than its node has."""
    way = choose_way(size, nodes, asked, workers)
    assert 1 <= way.threads <= way.cores
    if way.name == "nodes":
        assert way.parts == 1 or 2 * way.cores > max(nodes)
        assert sum(cores >= way.cores for cores in nodes) >= way.parts >= 2
    elif way.name == "threads":
        assert (way.parts, way.threads) == (1, way.cores)
        assert way.cores <= max(nodes)


class Recorded:
    """An engine that answers as it is told, and knows what it was asked."""

    def __init__(self, answers: dict[str, Outcome | None]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.cancelled: list[str] = []

    async def run(self, attempt: Attempt) -> tuple[Outcome, None]:
        self.asked.append(attempt.id)
        answer = self.answers.get(attempt.id, Outcome(attempt.id, ok=True, seconds=1.0))
        try:
            if answer is None:
                await asyncio.Event().wait()
                raise AssertionError("unreachable")
        except asyncio.CancelledError:
            self.cancelled.append(attempt.id)
            raise
        return answer, None


def carried_out(engine: Any, folder: Path, way: Way) -> Outcome:
    """The outcome of a merge by that engine."""
    arguments = {"phase": "whole", "shards": {"a": "b"}, "bank": str(folder / "bank.h5"), "verify": True}
    return asyncio.run(merge(engine, Attempt(id="m", kind="merge", merge=arguments), way))


def test_a_merge_in_parts_is_one_attempt_to_its_caller(tmp_path: Path) -> None:
    """Begin, all parts at once, finish: one outcome, of the whole one's name and the time of all."""
    engine = Recorded({"m-finish": Outcome("m-finish", ok=True, seconds=0.5, info={"rows": 7})})
    outcome = carried_out(engine, tmp_path, Way("nodes", 3, 2, 4))
    assert (outcome.id, outcome.ok, outcome.seconds, outcome.info) == ("m", True, 2.5, {"rows": 7})
    assert (engine.asked[0], set(engine.asked[1:4])) == ("m-begin", {"m-copy-0", "m-copy-1", "m-copy-2"})
    assert engine.asked[4:] == ["m-finish"]


@pytest.mark.parametrize("reason", ["lost", "signal", "merge"])
def test_what_fails_in_one_part_fails_the_merge(tmp_path: Path, reason: str) -> None:
    """The first failure is the merge's own, at once: the other parts are ended, and nothing is finished."""
    failed = Outcome("m-copy-1", ok=False, reason=reason, message="why", node="n2")
    engine = Recorded({"m-copy-0": None, "m-copy-1": failed, "m-copy-2": None})
    (tmp_path / "bank.h5.parts").mkdir()
    outcome = carried_out(engine, tmp_path, Way("nodes", 3, 2, 4))
    assert (outcome.id, outcome.ok, outcome.reason, outcome.message) == ("m", False, reason, "why")
    assert sorted(engine.cancelled) == ["m-copy-0", "m-copy-2"]
    assert "m-finish" not in engine.asked
    assert not (tmp_path / "bank.h5.parts").exists()


def test_a_merge_that_cannot_begin_copies_nothing(tmp_path: Path) -> None:
    """A failure of the first phase is the merge's."""
    engine = Recorded({"m-begin": Outcome("m-begin", ok=False, reason="damaged", paths=("a",))})
    outcome = carried_out(engine, tmp_path, Way("nodes", 3, 2, 4))
    assert (outcome.reason, outcome.paths, engine.asked) == ("damaged", ("a",), ["m-begin"])


def test_a_cancelled_merge_ends_its_parts(tmp_path: Path) -> None:
    """Whoever gives a merge up waits for what was begun to end."""
    engine = Recorded({"m-copy-0": None, "m-copy-1": None})

    async def scenario() -> None:
        arguments = {"phase": "whole", "shards": {}, "bank": str(tmp_path / "bank.h5"), "verify": True}
        attempt = Attempt(id="m", kind="merge", merge=arguments)
        task = asyncio.create_task(merge(engine, attempt, Way("nodes", 2)))  # type: ignore[arg-type]  # a stand-in
        while len(engine.asked) < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert sorted(engine.cancelled) == ["m-copy-0", "m-copy-1"]
