"""Where a run stands is a fold over its records, and nothing else."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rose_hpc.progress import STAGES, Progress, badness

NAMES = st.sampled_from(["a", "b", "c"])
ITERATIONS = st.integers(0, 4)
REWARDS = st.floats(-100, 100)
REASONS = st.sampled_from(["failed", "late", "waiting"])


def kind(name: str, /, **fields: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({"kind": st.just(name), **fields})


RECORDS = st.lists(
    st.one_of(
        kind("run", name=st.just("toy"), seed=st.integers(0, 9)),
        kind("extend", max_iterations=st.integers(1, 9)),
        kind("job", epoch=st.integers(0, 9)),
        kind("scripts", digests=st.dictionaries(NAMES, st.text("01", max_size=3))),
        kind("rank", iteration=ITERATIONS, environment=NAMES, rows=st.integers(0, 9), nan_rewards=st.integers(0, 3)),
        kind("rank", iteration=ITERATIONS, environment=NAMES, rows=st.integers(0, 9), lag=st.integers(1, 2)),
        kind("discarded", iteration=ITERATIONS, environment=NAMES),
        kind("stage", iteration=ITERATIONS, stage=st.just("collect"), missing=st.dictionaries(NAMES, REASONS)),
        kind("attempt", iteration=ITERATIONS, environment=NAMES, message=st.just("exited")),
        kind("stage", iteration=ITERATIONS, stage=st.sampled_from(["collect", "update"])),
        kind("stage", iteration=ITERATIONS, stage=st.just("merge"), rows=st.integers(0, 99), digest=st.none() | NAMES),
        kind("stage", iteration=ITERATIONS, stage=st.just("check"), reward=REWARDS),
        kind("damaged", iteration=ITERATIONS, environment=NAMES),
        kind("redo", iteration=ITERATIONS),
        kind("checkpoint", iteration=ITERATIONS),
        kind("checkpoint", iteration=ITERATIONS, config=st.none() | st.just({"update": {"args": [1]}})),
        kind("end", state=st.just("stopped")),
        kind("of another version"),
    ),
    max_size=25,
)


def iteration(number: int, reward: float = 1.0, names: str = "ab", **rank) -> list[dict]:
    """The records of a whole iteration."""
    return [
        *({"kind": "rank", "iteration": number, "environment": name, "rows": 5, **rank} for name in names),
        {"kind": "stage", "iteration": number, "stage": "collect", "rows": 10},
        {"kind": "stage", "iteration": number, "stage": "merge", "rows": 10, "digest": "d"},
        {"kind": "stage", "iteration": number, "stage": "update"},
        {"kind": "stage", "iteration": number, "stage": "check", "reward": reward},
        {"kind": "checkpoint", "iteration": number},
    ]


@settings(deadline=None)
@given(RECORDS, st.integers(0, 25))
def test_progress_does_not_depend_on_how_the_journal_is_read(records, cut):
    """Records taken at once or in two readings lead to the same place, and are themselves left as they were."""
    before = copy.deepcopy(records)
    progress = Progress.of(records[:cut])
    for record in records[cut:]:
        progress.apply(record)
    assert progress == Progress.of(records)
    assert records == before


@settings(deadline=None)
@given(RECORDS)
def test_progress_is_sound_after_any_records(records):
    """Whatever came before, the facts that are derived can be asked for, and fit the records."""
    progress = Progress.of(records)
    assert progress.nan_rewards >= sum(record.get("nan_rewards", 0) for record in progress.ranks.values()) >= 0
    assert progress.rows == sum(record["rows"] for record in progress.merges.values())
    assert progress.stage in (*STAGES, None)
    assert (progress.reward is None) == (progress.best() is None) == (not progress.rewards)
    assert progress.best() is None or progress.best() in progress.rewards


def test_a_run_from_its_first_record_to_its_end():
    """Stages, iterations, rewards and rows are counted as they are recorded."""
    progress = Progress()
    assert (progress.stage, progress.iteration, progress.reward, progress.rows) == ("collect", 0, None, 0)
    seen = []
    for record in [*iteration(0, 3.0), *iteration(1, 2.0)]:
        progress.apply(record)
        seen.append((progress.iteration, progress.stage))
    assert seen[:7] == [
        *((0, "collect"), (0, "collect"), (0, "merge"), (0, "update"), (0, "check"), (0, None), (1, "collect")),
    ]
    assert (progress.iteration, progress.rewards, progress.rows) == (2, [(0, 3.0), (1, 2.0)], 20)
    assert (progress.reward, progress.ranks, progress.stages) == (2.0, {}, {})


def test_a_damaged_shard_is_collected_again():
    """A damaged shard takes its rank record and the stage's with it; the other environments keep theirs."""
    records = iteration(0)[:3]
    progress = Progress.of([*records, {"kind": "damaged", "iteration": 0, "environment": "a"}])
    assert list(progress.ranks) == ["b"]
    assert progress.stage == "collect"


def test_a_repeated_iteration_counts_once():
    """An iteration done again replaces its reward, its rows and its NaN rewards: nothing is counted twice."""
    first = iteration(0, 1.0, nan_rewards=2)[:-1]
    again = iteration(0, 4.0, nan_rewards=2)
    progress = Progress.of([*first, {"kind": "redo", "iteration": 0}, *again])
    assert (progress.rewards, progress.rows, progress.nan_rewards) == ([(0, 4.0)], 10, 4)
    redone = Progress.of([*first, {"kind": "redo", "iteration": 0}])
    assert (redone.stage, redone.ranks, redone.nan_rewards) == ("collect", {}, 0)


def test_an_end_is_undone_by_the_next_driver():
    """A run that ended, and was extended or driven again, has not ended."""
    end = {"kind": "end", "state": "max_iterations"}
    assert Progress.of([end]).end == end
    assert Progress.of([end, {"kind": "extend", "max_iterations": 9}]).end is None
    assert Progress.of([end, {"kind": "job"}]).end is None
    assert Progress.of([end, {"kind": "scripts", "digests": {}}]).end == end


def test_an_extension_changes_only_what_it_names():
    """What the run record says stays, but for the fields an extension gives."""
    run = {"kind": "run", "name": "toy", "max_iterations": 3}
    progress = Progress.of([run, {"kind": "extend", "max_iterations": 5}])
    assert (progress.run["name"], progress.run["max_iterations"]) == ("toy", 5)


def test_a_configuration_stays_until_the_next_one():
    """What set_next_config set last holds from the next iteration on, for all later ones."""
    first, second = ({"kind": "config", "iteration": 0, "config": {"update": {"args": [k]}}} for k in (1, 2))
    checkpoints = [{"kind": "checkpoint", "iteration": k} for k in range(3)]
    assert Progress.of([first]).config is None, "not for the iteration under way"
    assert Progress.of([first, second, checkpoints[0]]).config == second["config"]
    assert Progress.of([first, checkpoints[0], checkpoints[1], second]).config == first["config"]
    assert Progress.of([first, checkpoints[0], second, *checkpoints[1:]]).config == second["config"]


def rewarded(rewards: list[float], **run: Any) -> Progress:
    """A run with these rewards."""
    checks = [{"kind": "stage", "stage": "check", "iteration": k, "reward": reward} for k, reward in enumerate(rewards)]
    return Progress.of([{"kind": "run", **run}, *checks])


def test_the_best_reward_is_the_criterions():
    """The greatest is best, or the least where less is asked for; of equals the first; `before` looks back only."""
    rewards = [2.0, 5.0, 1.0, 5.0, 1.0]
    for operator in (">", ">=", None):
        assert rewarded(rewards, operator=operator).best() == (1, 5.0)
    for operator in ("<", "<="):
        assert rewarded(rewards, operator=operator).best() == (2, 1.0)
    assert rewarded(rewards, operator=">").best(before=1) == (0, 2.0)
    assert rewarded(rewards, operator="<").best(before=0) is None


def test_the_best_reward_of_an_equality_is_the_nearest():
    """With ``==`` neither the greatest nor the least is best, but the one nearest to the threshold."""
    assert rewarded([4.0, 11.0, 30.0], operator="==", threshold=10.0).best() == (1, 11.0)
    assert rewarded([4.0, 11.0, 30.0], operator="=", threshold=10.0).best(before=1) == (0, 4.0)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 5).map(float), max_size=12),
    st.lists(st.sampled_from([">", "<", "=="]), min_size=1, max_size=3),
    st.integers(0, 12),
    st.booleans(),
)
def test_the_best_reward_is_that_of_all(rewards, operators, before, again):
    """However the criterion was changed meanwhile, and though the last check was done again."""
    progress = rewarded(rewards, operator=operators[0], threshold=2.0)
    for operator in operators[1:]:
        progress.apply({"kind": "extend", "operator": operator})
    if again and rewards:
        rewards = [*rewards[:-1], 3.0]
        progress.apply({"kind": "stage", "stage": "check", "iteration": len(rewards) - 1, "reward": 3.0})
    for end in (before, None):
        known = [(badness(reward, operators[-1], 2.0), k) for k, reward in enumerate(rewards[:end])]
        best = min(known, default=None)
        assert progress.best(before=end) == (None if best is None else (best[1], rewards[best[1]]))


def collected(iteration: int, seconds: float = 1.0, **missing: str) -> dict:
    return {"kind": "stage", "stage": "collect", "iteration": iteration, "seconds": seconds, "missing": missing}


def test_who_is_missing_late_and_discarded():
    """Misses count in a row until a shard comes; a late one is late until it is taken or discarded, and counts once."""
    progress = Progress.of([collected(0, a="failed", b="late"), {"kind": "checkpoint", "iteration": 0}])
    assert (progress.missing, progress.misses, progress.late) == (
        *({"a": "failed", "b": "late"}, {"a": [0]}, {"b": 0}),
    )
    for record in (collected(1, a="failed", b="late"), collected(1, a="failed", b="late")):  # once more, after damage
        progress.apply(record)
    assert (progress.misses, progress.late) == ({"a": [0, 1]}, {"b": 0})
    progress.apply({"kind": "rank", "environment": "a", "iteration": 1, "rows": 1, "seconds": 2.0})
    progress.apply({"kind": "rank", "environment": "b", "iteration": 1, "rows": 1, "lag": 1})
    assert (progress.misses, progress.late, progress.admitted) == ({}, {}, 1)
    progress.apply({"kind": "damaged", "environment": "b", "iteration": 1})
    assert progress.admitted == 0
    progress.apply(collected(1, b="late"))
    progress.apply({"kind": "discarded", "environment": "b", "iteration": 1})
    assert (progress.late, progress.discarded) == ({}, 1)


def test_how_long_something_takes_is_the_longest_of_the_last_times():
    """What took long once is forgotten after three times; of what never ended nobody knows."""
    progress = Progress.of([collected(k, seconds) for k, seconds in enumerate((9.0, 2.0, 3.0, 1.0))])
    assert progress.expected_s("collect") == 3.0
    assert (progress.expected_s("merge"), progress.expected_s("collect", "a")) == (None, None)


def test_a_long_run_takes_little_memory():
    """Of an iteration stays what is decided by, some hundred bytes; what only reports want goes by."""
    columns = {f"column {n}": "float32[4]" for n in range(10)}

    def records(count: int) -> Iterator[dict]:
        for number in range(count):
            for record in iteration(number, names="abcdefgh", seconds=1.0):
                if record.get("stage") == "merge":  # each with values of its own, as it is read from a file
                    returns = {f"env_{n}": {"mean": float(number + n), "episodes": number} for n in range(100)}
                    record |= {"returns": returns, "columns": dict(copy.deepcopy(columns))}
                yield record

    tracemalloc.start()
    try:
        Progress.of(records(10))
        before, _ = tracemalloc.get_traced_memory()
        progress = Progress.of(records(500))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(progress.merges) == len(progress.updates) == 500
    assert (after - before) / 500 < 2000
