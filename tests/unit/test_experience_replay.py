"""Replay: the newest rows of a window, whole episodes, sequences, and batches drawn ahead."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rose_hpc.errors import ExperienceError
from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.replay import ahead
from rose_hpc.experience.shard import ShardWriter

#: lengths of the episodes of each shard; the last of each does not end
LENGTHS = [[3, 1, 5, 2], [4, 6], [2]]


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three banks of one shard each; row n of all has number n, and the number of its episode."""
    folder = tmp_path_factory.mktemp("replay")
    row = episode = 0
    paths = []
    for k, lengths in enumerate(LENGTHS):
        with ShardWriter(folder / f"s{k}.h5", fsync=False) as shard:
            for number, length in enumerate(lengths):
                for step in range(length):
                    over = step == length - 1 and number < len(lengths) - 1
                    shard.append(observation=[row, step], reward=1.0, terminated=over, episode=episode)
                    row += 1
                episode += 1
        merge_shards([folder / f"s{k}.h5"], folder / f"bank{k}.h5")
        paths.append(folder / f"bank{k}.h5")
    return paths


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 3), max_rows=st.integers(1, 30))
def test_max_rows_are_the_newest(banks: list[Path], count: int, max_rows: int) -> None:
    """A window with max_rows is the end of the whole one: rows, samples, statistics, shards, episodes."""
    whole = ExperienceBank.open(banks[:count])
    some = ExperienceBank.open(banks[:count], max_rows=max_rows)
    rows = np.asarray(whole["observations"])[-max_rows:]
    assert len(some) == len(rows)
    assert np.array_equal(np.asarray(some["observations"]), rows)
    assert set(some.sample(200, rng=0)["observations"][:, 0]) <= set(rows[:, 0])
    stats = some.stats("observations")
    assert stats.count[0] == len(rows)
    np.testing.assert_allclose(stats.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.std, rows.std(axis=0), rtol=1e-12, atol=1e-12)
    dropped = len(whole) - len(some)
    assert some.shard_offsets.tolist() == np.maximum(whole.shard_offsets - dropped, 0).tolist()
    kept = whole.episodes.starts >= dropped
    assert some.episodes.starts.tolist() == (whole.episodes.starts[kept] - dropped).tolist()
    assert some.episodes.stops.tolist() == (whole.episodes.stops[kept] - dropped).tolist()
    assert some.episodes.ended.tolist() == whole.episodes.ended[kept].tolist()


def test_max_rows_must_be_some(banks: list[Path]) -> None:
    """No rows at all are not a window."""
    with pytest.raises(ExperienceError, match="max_rows is 0"):
        ExperienceBank.open(banks, max_rows=0)


def test_a_window_has_the_episodes_of_its_banks(banks: list[Path]) -> None:
    """Their starts and lengths follow each other; no episode goes from one bank into the next."""
    episodes = ExperienceBank.open(banks).episodes
    assert episodes.lengths.tolist() == [length for lengths in LENGTHS for length in lengths]
    assert episodes.returns.tolist() == episodes.lengths.tolist()
    assert episodes.ended.tolist() == [True, True, True, False, True, False, False]
    assert episodes.starts.tolist() == [0, 3, 4, 9, 11, 15, 21]


@pytest.mark.parametrize("count", [1, 3])
def test_episodes_come_whole(banks: list[Path], count: int) -> None:
    """Every sampled episode is all rows of one that ended, all of them come up, and a seed repeats them."""
    bank = ExperienceBank.open(banks[:count])
    sampled = bank.sample_episodes(100, rng=0)
    for episode in sampled:
        assert len(set(episode["episode"])) == 1
        assert episode["observations"][:, 1].tolist() == list(range(len(episode["episode"])))
        assert episode["terminations"].tolist() == [False] * (len(episode["episode"]) - 1) + [True]
        episode["rewards"][:] = 0  # a copy
    assert {int(episode["episode"][0]) for episode in sampled} == ({0, 1, 2} if count == 1 else {0, 1, 2, 4})
    again = bank.sample_episodes(100, rng=0)
    assert [int(e["episode"][0]) for e in again] == [int(e["episode"][0]) for e in sampled]
    few = bank.sample_episodes(3, rng=1, replace=False)
    assert len({int(e["episode"][0]) for e in few}) == 3
    with pytest.raises(ExperienceError, match=r"cannot sample 5 of [34] whole episodes"):
        bank.sample_episodes(5, replace=False)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_sequences_stay_in_their_episode(banks: list[Path], count: int, length: int) -> None:
    """Every sequence is consecutive rows of one episode, all that there are come up, and each about as often."""
    bank = ExperienceBank.open(banks[:count])
    batch = bank.sample_sequences(20_000, length, rng=0)
    assert batch["observations"].shape == (20_000, length, 2)
    rows = batch["observations"][:, :, 0]
    assert (np.diff(rows, axis=1) == 1).all()
    assert (batch["episode"] == batch["episode"][:, :1]).all()
    lengths = [n for lengths in LENGTHS[:count] for n in lengths]
    starts, counts = np.unique(rows[:, 0], return_counts=True)
    assert len(starts) == sum(max(0, n - length + 1) for n in lengths)
    expected = 20_000 / len(starts)
    assert (abs(counts - expected) < 6 * expected**0.5).all()


def test_what_cannot_be_sampled_says_so(banks: list[Path], tmp_path: Path) -> None:
    """Sequences longer than any episode, no sequence at all, and banks that tell no episodes are errors with a hint."""
    bank = ExperienceBank.open(banks)
    with pytest.raises(ExperienceError, match="no episode has 7 rows; the longest has 6"):
        bank.sample_sequences(1, 7)
    with pytest.raises(ExperienceError, match="positive"):
        bank.sample_sequences(1, 0)
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.extend(rewards=np.ones(3))
    with pytest.raises(ExperienceError, match="terminations or truncations"):
        ExperienceBank.open(tmp_path / "a.h5").sample_sequences(1, 1)
    with pytest.raises(ExperienceError, match="cannot sample 1 of 0 whole episodes"):
        ExperienceBank.open(banks[2]).sample_episodes(1)


def test_a_stream_gives_what_sampling_gives(banks: list[Path]) -> None:
    """Batches drawn ahead are those that sample would give one by one; closing ends the thread."""
    bank = ExperienceBank.open(banks)
    rng = np.random.default_rng(4)
    expected = [bank.sample(8, rng)["episode"].tolist() for _ in range(6)]
    before = threading.active_count()
    stream = bank.stream(8, rng=4, ahead=3)
    assert [batch["episode"].tolist() for batch in islice(stream, 6)] == expected
    assert threading.active_count() == before + 1
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert threading.active_count() == before


def test_a_stream_of_sequences(banks: list[Path]) -> None:
    """With a length, what is drawn ahead are sequences, the same as one by one."""
    bank = ExperienceBank.open(banks)
    rng = np.random.default_rng(4)
    expected = [bank.sample_sequences(8, 2, rng)["observations"].tolist() for _ in range(4)]
    stream = bank.stream(8, rng=4, length=2)
    assert [batch["observations"].tolist() for batch in islice(stream, 4)] == expected
    stream.close()  # type: ignore[attr-defined]  # a generator


def test_a_stream_draws_ahead_and_no_further() -> None:
    """While one item is used, exactly as many as asked for are drawn; an error comes out where it belongs."""
    drawn = threading.Semaphore(0)
    numbers = iter(range(5))

    def draw() -> int:
        drawn.release()
        return next(numbers)

    stream = ahead(draw, 2)
    assert next(stream) == 0
    for _ in range(3):
        assert drawn.acquire(timeout=30)
    assert not drawn.acquire(blocking=False)
    assert list(islice(stream, 4)) == [1, 2, 3, 4]
    with pytest.raises(RuntimeError):  # what a generator makes of StopIteration
        next(stream)
    with pytest.raises(ExperienceError, match="at least 1"):
        next(ahead(draw, 0))
