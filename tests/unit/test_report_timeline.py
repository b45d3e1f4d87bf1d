"""The records of a run as bars: who did what, when and where."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from rose_hpc.progress import Progress
from rose_hpc.report.history import read_history
from rose_hpc.report.timeline import Bar, read_timeline, slots
from rose_hpc.slurm import view
from rose_hpc.slurm.queue import NOT_ASKED
from rose_hpc.slurm.records import JobRecord

RUN = {"kind": "run", "time": 100.0, "name": "toy", "environments": ["a", "b", "c"], "threshold": 5.0, "operator": ">"}


def job(time: float, **facts: Any) -> dict[str, Any]:
    return {"kind": "job", "time": time, "host": "login", "job": None, **facts}


def rank(time: float, name: str, seconds: float, iteration: int = 0, node: str = "n1", **facts: Any) -> dict[str, Any]:
    where = {"iteration": iteration, "environment": name, "node": node}
    return {"kind": "rank", "time": time, "stage": "collect", "seconds": seconds, "rows": 10, **where, **facts}


def stage(time: float, name: str, iteration: int = 0, **facts: Any) -> dict[str, Any]:
    return {"kind": "stage", "time": time, "stage": name, "iteration": iteration, **facts}


def submitted(number: str, time: float, nodes: int = 2) -> JobRecord:
    return JobRecord(number, f"rose-hpc:{number}", time, "me", 1, ("sbatch",), nodes)


ITERATION = [
    *(rank(110.0, "a", 4.0), rank(111.0, "b", 5.0, node="n2"), stage(111.0, "collect"), stage(112.0, "merge")),
    *(stage(114.0, "update", seconds=1.5, node="n1"), stage(115.0, "check", seconds=0.5, reward=1.0)),
    {"kind": "checkpoint", "time": 115.5, "iteration": 0},
]


def test_an_iteration_as_bars():
    """Ranks last their seconds; stages last from what went before to their record; what is before work is starting."""
    timeline = read_timeline([RUN, job(100.0), *ITERATION])
    assert [(bar.who, bar.start, bar.end, bar.node) for bar in timeline.ranks] == [
        *(("a", 106.0, 110.0, "n1"), ("b", 106.0, 111.0, "n2")),
    ]
    assert [(bar.kind, bar.start, bar.end) for bar in timeline.stages] == [
        *(("starting", 100.0, 106.0), ("collect", 106.0, 111.0), ("merge", 111.0, 112.0)),
        *(("update", 112.0, 114.0), ("check", 114.0, 115.0)),
    ]
    (driver,) = timeline.drivers
    assert (driver.began, driver.ended, driver.nodes, driver.end) == (100.0, 115.5, 2, "")


def test_the_bars_of_an_iteration_add_up():
    """Of a driver's time nothing is counted twice or lost between its first record and its last stage."""
    timeline = read_timeline([RUN, job(100.0), *ITERATION])
    assert sum(bar.seconds for bar in timeline.stages) == pytest.approx(15.0)
    (iteration,) = read_history([RUN, job(100.0), *ITERATION], timeline, {}).iterations
    assert iteration.seconds == {"other": 6.0, "collect": 5.0, "merge": 1.0, "update": 2.0, "check": 1.0}
    assert (iteration.reward, iteration.threshold) == (1.0, 5.0)


def test_waiting_in_the_queue():
    """A job waits from its submission to its driver; one in which none began waits to the end of what is known."""
    jobs = [submitted("7", 40.0, nodes=3), submitted("8", 41.0)]
    timeline = read_timeline([RUN, job(100.0, job="7"), *ITERATION], jobs)
    assert [(bar.who, bar.start, bar.end) for bar in timeline.queue] == [("7", 40.0, 100.0), ("8", 41.0, 115.5)]
    assert timeline.drivers[0].submitted == 40.0
    assert timeline.drivers[0].nodes == 3
    assert (timeline.start, timeline.end) == (40.0, 115.5)


def test_node_hours_are_those_of_status():
    """For a run in Slurm's jobs, the drivers' node-hours are the number that `status` says."""
    later = [{**record, "time": record["time"] + 1000, "iteration": 1} for record in ITERATION]
    records = [RUN, job(100.0, job="7"), *ITERATION, job(1100.0, job="8"), *later]
    jobs = [submitted("7", 40.0, nodes=3), submitted("8", 1000.0)]
    ours = sum(driver.node_hours for driver in read_timeline(records, jobs).drivers)
    assert ours == pytest.approx(view.node_hours(Progress.of(records), jobs, NOT_ASKED), abs=1e-3)


def test_a_change_belongs_to_the_driver_that_makes_it():
    """The record of a change, days after a driver's end, does not make that driver last for days."""
    end = {"kind": "end", "time": 116.0, "state": "converged", "reason": "enough"}
    extend = {"kind": "extend", "time": 90000.0, "threshold": 9.0}
    timeline = read_timeline([RUN, job(100.0), *ITERATION, end, extend, job(90000.5), {**end, "time": 90001.0}])
    assert [(driver.began, driver.ended, driver.end) for driver in timeline.drivers] == [
        *((100.0, 116.0, "converged"), (90000.5, 90001.0, "converged")),
    ]
    assert timeline.driven_s == pytest.approx(16.5)


def test_stragglers_are_told_from_their_iteration():
    """A rank half as long again as its iteration's median is a straggler; of two ranks neither is."""
    ranks = [rank(110.0, "a", 4.0), rank(110.5, "b", 4.5), rank(117.0, "c", 11.0)]
    timeline = read_timeline([RUN, job(100.0), *ranks, stage(117.0, "collect")])
    assert {bar.who: bar.kind for bar in timeline.ranks} == {"a": "collect", "b": "collect", "c": "straggler"}
    timeline = read_timeline([RUN, job(100.0), ranks[0], ranks[2], stage(117.0, "collect")])
    assert {bar.kind for bar in timeline.ranks} == {"collect"}


def test_failed_attempts_are_bars_of_their_own():
    """An environment's failed attempt is among the ranks, an update's among the stages."""
    failed = {"kind": "attempt", "time": 109.0, "stage": "collect", "environment": "a", "seconds": 2.0, "iteration": 0}
    update = {**failed, "time": 113.0, "stage": "update", "environment": "", "seconds": 0.5}
    timeline = read_timeline([RUN, job(100.0), failed, *ITERATION[:4], update])
    rank_bar, stage_bar = timeline.ranks[0], timeline.stages[-1]
    assert (rank_bar.kind, rank_bar.who, rank_bar.seconds) == ("failed", "a", 2.0)
    assert (stage_bar.kind, stage_bar.who, stage_bar.seconds) == ("failed", "update", 0.5)


def test_ranks_of_a_driver_that_was_killed_are_there():
    """What a killed driver had collected is drawn, and the next one's collect begins with its own ranks."""
    records = [RUN, job(100.0), rank(110.0, "a", 4.0), job(200.0), rank(205.0, "b", 3.0), stage(205.0, "collect")]
    timeline = read_timeline(records)
    assert [bar.who for bar in timeline.ranks] == ["a", "b"]
    assert [(bar.kind, bar.start, bar.end) for bar in timeline.stages] == [
        *(("starting", 100.0, 106.0), ("collect", 106.0, 110.0)),
        *(("starting", 200.0, 202.0), ("collect", 202.0, 205.0)),
    ]
    failures = read_history(records, timeline, {}).failures
    assert [(failure.what, failure.who) for failure in failures] == [("lost", "driver 0")]


def test_a_clock_that_goes_back_makes_no_negative_bars():
    """Drivers on hosts whose clocks differ: a bar is never shorter than nothing."""
    timeline = read_timeline([RUN, job(200.0), *ITERATION])
    assert all(bar.seconds >= 0 for bar in (*timeline.ranks, *timeline.stages))
    assert all(driver.ended >= driver.began for driver in timeline.drivers)


def test_no_two_bars_share_a_slot_at_once():
    """Bars on one slot follow each other, but for what publishing takes; an environment keeps its slot if it can."""
    bars = [Bar(start, start + 3.0, "collect", who) for start, who in ((0.0, "a"), (0.1, "b"), (3.05, "c"), (3.2, "b"))]
    assert [(slot, bar.who) for slot, bar in slots(bars)] == [(0, "a"), (1, "b"), (0, "c"), (1, "b")]
    crowd = [Bar(k / 10, k / 10 + 1, "collect", str(k)) for k in range(100)]
    lanes: dict[int, list[Bar]] = {}
    for slot, bar in slots(crowd):
        lanes.setdefault(slot, []).append(bar)
    for lane in lanes.values():
        assert all(a.end - b.start <= 0.0701 for a, b in pairwise(lane))
    assert len(lanes) <= 11


def test_the_threshold_as_it_was_then():
    """A threshold that was changed between drivers is the old one for the old rewards."""
    check = stage(120.0, "check", 1, reward=7.0)
    records = [RUN, job(100.0), *ITERATION, {"kind": "extend", "time": 118.0, "threshold": 6.5}, job(118.0), check]
    history = read_history(records, read_timeline(records), {})
    assert [(each.number, each.reward, each.threshold) for each in history.iterations] == [(0, 1.0, 5.0), (1, 7.0, 6.5)]


def test_what_environments_did_in_all():
    """Rows, seconds, memory, nodes and returns of each environment; parameters from the records if need be."""
    merge = {
        "returns": {"a": {"mean": 2.5, "episodes": 4, "parameters": {"eps": 0.1}}, "b": {"mean": None, "episodes": 0}}
    }
    first = [rank(110.0, "a", 4.0, max_rss_mb=50.0), rank(111.0, "b", 5.0, node="n2"), stage(111.0, "collect")]
    records = [RUN, job(100.0), *first, stage(112.0, "merge", **merge), rank(120.0, "a", 6.0, 1, "n2", max_rss_mb=60.0)]
    a, b, c = read_history(records, read_timeline(records), {"b": {"eps": 0.2}}).environments
    assert (a.rows, a.seconds, a.memory_mb, a.nodes) == (20, {0: 4.0, 1: 6.0}, 60.0, {"n1", "n2"})
    assert (a.returns, a.lately, a.episodes, a.parameters) == ({0: 2.5}, 2.5, 4, {"eps": 0.1})
    assert (b.returns, b.lately, b.parameters) == ({}, None, {"eps": 0.2})
    assert (c.rows, c.median_s) == (0, None)


def test_failures_in_the_order_they_happened():
    """Attempts with their exit code and log, shards that were damaged, what was done again, and drivers that failed."""
    records = [
        *(RUN, job(100.0)),
        {"kind": "attempt", "time": 101.0, "iteration": 3, "stage": "collect", "environment": "a", "attempt": 1}
        | {"node": "n1", "reason": "exit", "message": "no such map", "exit_code": 2, "seconds": 1.0},
        {"kind": "damaged", "time": 102.0, "iteration": 3, "environment": "b", "path": None, "reason": "digest"},
        {"kind": "redo", "time": 103.0, "iteration": 3, "reason": "no JSON"},
        {"kind": "end", "time": 104.0, "state": "failed", "reason": "it exited with code 2", "iteration": 3},
    ]
    found = read_history(records, read_timeline(records), {}).failures
    assert [(each.who, each.what, each.message, each.log) for each in found] == [
        ("a", "exit", "no such map (exit code 2)", "logs/iter-0003-collect-a.log"),
        ("b", "damaged shard", "digest", ""),
        ("all environments", "done again", "no JSON", ""),
        ("driver 0", "failed", "it exited with code 2", ""),
    ]
    assert Progress.of(records).end is not None
