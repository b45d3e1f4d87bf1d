"""Episodes: found in shards and banks, kept in banks, and summed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rose_hpc.errors import DamagedError
from rose_hpc.experience import episodes as module
from rose_hpc.experience.episodes import Returns, find_episodes, read_episodes, returns_of
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.schema import ShardInfo
from rose_hpc.experience.shard import ShardWriter, seal


def write(path: Path, rewards: list[float], over: list[int], truncated: bool = False, **more: Any) -> Path:
    """A shard whose episodes end with the rows in ``over``."""
    flags = np.isin(np.arange(len(rewards)), over)
    names = ("truncations", "terminations") if truncated else ("terminations", "truncations")
    with ShardWriter(path, fsync=False) as shard:
        columns = {"rewards": np.array(rewards, np.float64), names[0]: flags, names[1]: np.zeros_like(flags), **more}
        shard.extend(**columns)
    return path


def naive(rewards: list[float], over: list[int], first: int = 0) -> list[tuple[int, int, float, bool]]:
    """Start, stop, return and end of each episode, row by row."""
    found, start, total = [], 0, 0.0
    for row, reward in enumerate(rewards):
        total += reward
        if row in over:
            found.append((first + start, first + row + 1, total, True))
            start, total = row + 1, 0.0
    if start < len(rewards):
        found.append((first + start, first + len(rewards), total, False))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=30), min_size=1, max_size=4),
    block=st.integers(1, 40),
    truncated=st.booleans(),
)
def test_a_bank_keeps_the_episodes_that_a_row_by_row_count_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: list[list[tuple[int, bool]]], block: int, truncated: bool
) -> None:
    """Starts, stops, returns and ends, for any shards and flags, whatever the rows that are looked at at once."""
    monkeypatch.setattr(module, "_BLOCK", block)
    paths, expected, first = [], [], 0
    for number, rows in enumerate(shards):
        rewards, over = [float(reward) for reward, _ in rows], [k for k, (_, ends) in enumerate(rows) if ends]
        paths.append(write(tmp_path / f"s{number}.h5", rewards, over, truncated))
        expected += naive(rewards, over, first)
        first += len(rows)
    bank = merge_shards(paths, tmp_path / "bank.h5")
    kept, found = read_episodes(bank), find_episodes(bank.path, bank.columns, bank.shard_offsets, workers=3)
    for episodes in (kept, found):
        assert episodes is not None
        arrays = (episodes.starts, episodes.stops, episodes.returns, episodes.ended)
        assert list(zip(*(array.tolist() for array in arrays), strict=True)) == expected
        assert [array.dtype.name for array in arrays] == ["int64", "int64", "float64", "bool"]
        assert len(episodes) == len(expected)
    assert bank.episodes == kept.digest == found.digest  # type: ignore[union-attr]  # as just asserted
    assert read_info(bank.path) == bank


def test_an_episode_ends_with_its_shard(tmp_path: Path) -> None:
    """What a shard's end cuts off does not go on in the next shard, and is marked as not ended."""
    paths = [write(tmp_path / "a.h5", [1, 2, 3], [0]), write(tmp_path / "b.h5", [4, 5], [1])]
    episodes = read_episodes(merge_shards(paths, tmp_path / "bank.h5"))
    assert episodes is not None
    assert episodes.starts.tolist() == [0, 1, 3]
    assert episodes.lengths.tolist() == [1, 2, 2]
    assert episodes.returns.tolist() == [1, 5, 9]
    assert episodes.ended.tolist() == [True, False, True]


def test_returns_are_summed_up_for_each_environment(tmp_path: Path) -> None:
    """Only episodes that ended count; an environment without one, or without rows, has none and no mean."""
    paths = [
        write(tmp_path / "a.h5", [1, 2, 3, 4, 9], [1, 3]),
        write(tmp_path / "b.h5", [5, 6], []),
        write(tmp_path / "c.h5", [], []),
        write(tmp_path / "d.h5", [np.nan, 1.0], [0, 1]),
    ]
    returns = returns_of(merge_shards(paths, tmp_path / "bank.h5"))
    assert returns["a"] == {"episodes": 2, "mean": 5.0, "std": 2.0, "min": 3.0, "max": 7.0}
    assert returns["b"]["episodes"] == returns["c"]["episodes"] == 0
    assert returns["b"]["mean"] is None
    assert (returns["d"]["episodes"], returns["d"]["mean"]) == (2, 1.0)
    json.dumps(returns, allow_nan=False)
    assert returns_of(read_info(paths[0]))["a"]["mean"] == 5.0


def test_without_flags_there_are_no_episodes(tmp_path: Path) -> None:
    """A bank without terminations and truncations has none to tell; one without rewards has episodes, not returns."""
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.extend(rewards=np.ones(4))
    bank = merge_shards([tmp_path / "a.h5"], tmp_path / "bank.h5")
    assert (bank.episodes, read_episodes(bank), returns_of(bank)) == (None, None, {})
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.extend(terminations=np.array([False, True, False]))
    bank = merge_shards([tmp_path / "a.h5"], tmp_path / "bank.h5")
    assert read_episodes(bank).starts.tolist() == [0, 2]  # type: ignore[union-attr]  # None would fail too
    assert returns_of(bank) == {"a": {"episodes": 1, "mean": None, "std": None, "min": None, "max": None}}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_returns_are_summed_in_double_precision(tmp_path: Path, dtype: str) -> None:
    """Many small rewards of low precision do not get lost in the sum; vectors of rewards have no one sum."""
    rewards = np.full(100_000, 0.1, dtype)
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.extend(rewards=rewards, terminations=np.arange(100_000) == 99_999)
    episodes = read_episodes(read_info(tmp_path / "a.h5"))
    assert episodes is not None
    assert episodes.returns[0] == pytest.approx(rewards.astype(np.float64).sum(), rel=1e-12)
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.extend(rewards=np.ones((2, 3)), terminations=np.ones(2, bool))
    episodes = read_episodes(read_info(tmp_path / "a.h5"))
    assert episodes is not None
    assert np.isnan(episodes.returns).all()


def test_an_altered_list_of_episodes_is_damage(tmp_path: Path) -> None:
    """A bank whose kept starts or returns were changed is found when they are read, and when it is opened again."""
    bank = merge_shards([write(tmp_path / "a.h5", [1, 2, 3], [0, 2])], tmp_path / "bank.h5")
    with h5py.File(bank.path, "r+") as file:
        file.attrs["episode_returns"] = np.array([1.0, 6.0])
    with pytest.raises(DamagedError, match="list of episodes"):
        read_episodes(bank)
    with pytest.raises(DamagedError, match="altered"):
        read_info(bank.path)


def test_too_many_episodes_are_found_again_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank keeps its list only up to a size; beyond it, the list is found in the rows, the same."""
    path = write(tmp_path / "a.h5", [1, 2, 3], [0, 1])
    kept = merge_shards([path], tmp_path / "kept.h5")
    monkeypatch.setattr("rose_hpc.experience.merge.MAX_KEPT", 2)
    bank = merge_shards([path], tmp_path / "bank.h5")
    assert bank.episodes is None
    assert read_episodes(bank).digest == kept.episodes  # type: ignore[union-attr]  # None would fail too
    assert returns_of(bank) == returns_of(kept) != {}


def test_banks_without_a_list_are_read_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank of the first days, which keeps no episodes, opens, says the same of itself, and tells them when asked."""
    path = write(tmp_path / "a.h5", [1, 2, 3], [0, 1])
    monkeypatch.setattr("rose_hpc.experience.merge.MAX_KEPT", -1)
    bank = merge_shards([path], tmp_path / "bank.h5")
    with h5py.File(bank.path, "r") as file:
        assert not [name for name in file.attrs if name.startswith("episode")]
    old = {key: value for key, value in bank.to_json().items() if key != "episodes"}
    assert ShardInfo.from_json(old) == read_info(bank.path) == bank
    assert returns_of(bank)["a"]["episodes"] == 2


def test_sealing_a_bank_keeps_its_episodes(tmp_path: Path) -> None:
    """New attributes leave the list of episodes as it is."""
    bank = merge_shards([write(tmp_path / "a.h5", [1, 2, 3], [0, 1])], tmp_path / "bank.h5")
    info = seal(bank.path, attributes={"note": "x"})
    assert info.episodes == bank.episodes
    assert Returns.of(read_episodes(info)).episodes == 2  # type: ignore[arg-type]  # None would fail too
