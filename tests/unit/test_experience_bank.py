"""Reading banks: columns in place, samples, iteration, windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rose_hpc.errors import DamagedError, ExperienceError, SchemaError
from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.shard import ShardWriter


def write(path: Path, start: int, rows: int, **more: Any) -> Path:
    """A shard whose rows know their number: row n has observations n, n + 0.5 and reward -n."""
    numbers = np.arange(start, start + rows, dtype=np.float64)
    with ShardWriter(path, fsync=False) as shard:
        shard.extend(
            observations=np.stack([numbers, numbers + 0.5], axis=1).astype(np.float32),
            actions=numbers.astype(np.int64),
            rewards=-numbers,
            **more,
        )
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Files of 5, 0, 1 and 14 rows, numbered through."""
    lengths = [5, 0, 1, 14]
    starts = np.cumsum([0, *lengths]).tolist()
    return [write(tmp_path / f"p{n}.h5", starts[n], rows) for n, rows in enumerate(lengths)]


@pytest.fixture
def bank(parts: list[Path], tmp_path: Path) -> Path:
    """The bank of these files."""
    merge_shards(parts, tmp_path / "bank.h5")
    return tmp_path / "bank.h5"


def test_columns_are_read_only_arrays_over_the_file(bank: Path) -> None:
    """A bank's columns have their dtype and shape, are plain arrays that nobody can write to, and own no memory."""
    with ExperienceBank.open(bank) as opened:
        assert len(opened) == 20
        assert opened.columns == ("observations", "actions", "rewards")
        observations = opened["observations"]
    assert type(observations) is np.ndarray
    assert (observations.dtype, observations.shape) == (np.float32, (20, 2))
    assert not observations.flags.writeable
    assert not observations.flags.owndata
    assert observations[:, 0].tolist() == list(range(20))  # still there after close


def test_shards_and_offsets_say_where_rows_came_from(bank: Path, parts: list[Path]) -> None:
    """shards and shard_offsets are the same for a bank and for a window over its shards."""
    for opened in (ExperienceBank.open(bank), ExperienceBank.open(parts)):
        assert opened.shards == ("p0", "p1", "p2", "p3")
        assert opened.shard_offsets.tolist() == [0, 5, 5, 6, 20]
        assert opened.shard_offsets.dtype == np.int64


def test_a_sample_is_of_whole_rows(bank: Path) -> None:
    """All columns of a sample are of the same rows, in new arrays, and every row comes up."""
    sample = ExperienceBank.open(bank).sample(2000, rng=0)
    assert {name: array.shape for name, array in sample.items()} == {
        "observations": (2000, 2),
        "actions": (2000,),
        "rewards": (2000,),
    }
    assert np.array_equal(sample["observations"][:, 0], sample["actions"])
    assert np.array_equal(sample["rewards"], -sample["actions"])
    assert set(sample["actions"]) == set(range(20))
    sample["rewards"][:] = 0


def test_the_same_state_gives_the_same_sample(bank: Path) -> None:
    """A seed, and a generator in the same state, give the same sample; a generator goes on; None does not repeat."""
    opened = ExperienceBank.open(bank)
    by_seed, by_state = opened.sample(50, rng=3), opened.sample(50, np.random.default_rng(3))
    assert all(np.array_equal(by_seed[name], by_state[name]) for name in by_seed)
    rng = np.random.default_rng(3)
    first, second = (opened.sample(50, rng)["actions"].tolist() for _ in range(2))
    assert first == by_seed["actions"].tolist() != second
    assert opened.sample(50)["actions"].tolist() != opened.sample(50)["actions"].tolist()


@pytest.mark.parametrize("window", [False, True])
def test_without_replacement_no_row_comes_twice(bank: Path, parts: list[Path], window: bool) -> None:
    """All rows without replacement are a permutation; one row more is refused, but not with replacement."""
    opened = ExperienceBank.open(parts if window else bank)
    assert sorted(opened.sample(20, rng=1, replace=False)["actions"]) == list(range(20))
    with pytest.raises(ExperienceError, match="cannot sample 21 of the 20 rows"):
        opened.sample(21, replace=False)
    assert len(opened.sample(21)["actions"]) == 21
    assert len(opened.sample(0)["actions"]) == 0


def test_a_window_is_its_banks_as_one(bank: Path, parts: list[Path]) -> None:
    """A window over several files has the length, columns, statistics, samples and batches of one bank of all rows."""
    one, window = ExperienceBank.open(bank), ExperienceBank.open(parts)
    assert len(window) == len(one)
    assert window.columns == one.columns
    for name in one.columns:
        assert np.array_equal(np.asarray(window[name]), one[name])
        assert window.stats(name) == one.stats(name)
    for seed in range(20):
        a, b = one.sample(7, rng=seed), window.sample(7, rng=seed)
        assert all(np.array_equal(a[name], b[name]) for name in a)
    for size in (1, 4, 100):
        for a, b in zip(one.batches(size), window.batches(size), strict=True):
            assert all(np.array_equal(a[name], b[name]) for name in a)


INDEX = st.one_of(
    st.integers(-20, 19),
    st.slices(20),
    st.lists(st.integers(-20, 19)),
    st.lists(st.booleans(), min_size=20, max_size=20).map(np.array),
    st.tuples(st.slices(20), st.integers(0, 1)),
    st.tuples(st.integers(0, 19), st.integers(0, 1)),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=INDEX)
def test_a_windows_column_indexes_like_an_array(parts: list[Path], index: Any) -> None:
    """Integers, slices, lists, masks and tuples of them give what they give on an array of all rows."""
    column = ExperienceBank.open(parts)["observations"]
    whole = np.asarray(column)
    expected = whole[:0] if isinstance(index, list) and not index else whole[index]
    found = column[index]
    assert np.array_equal(found, expected)
    assert np.shape(found) == np.shape(expected)


def test_a_windows_column_looks_like_an_array(parts: list[Path]) -> None:
    """It has length, shape and dtype, iterates over rows, converts to arrays of any dtype, and knows its bounds."""
    column = ExperienceBank.open(parts)["observations"]
    assert (len(column), column.shape, column.dtype, column.ndim) == (20, (20, 2), np.float32, 2)
    assert [row[0] for row in column] == list(range(20))
    assert np.asarray(column, dtype=np.float64).dtype == np.float64
    assert np.mean(column) == np.mean(np.asarray(column))
    assert np.shares_memory(column[1:4], column.parts[0])
    for index in (20, -21, [0, 20], np.ones(19, bool)):
        with pytest.raises(IndexError):
            column[index]
    with pytest.raises(ValueError, match="copy"):
        np.array(column, copy=False)


def test_a_windows_column_computes_like_an_array(parts: list[Path]) -> None:
    """Methods, operators and functions give what they give on an array of all rows; nothing changes the column."""
    column = ExperienceBank.open(parts)["observations"]
    whole = np.asarray(column)
    assert (column.mean(), column.max(), column.size, column.nbytes) == (whole.mean(), whole.max(), 40, 160)
    assert np.array_equal(2 * column - 1, 2 * whole - 1)
    assert np.array_equal(column > 3, whole > 3)
    assert np.array_equal(np.add.reduce(column, axis=1), whole.sum(axis=1))
    assert np.array_equal(column.astype(int).T, whole.astype(int).T)
    for change in (column.sort, lambda: column.fill(0), lambda: np.add(column, 1, out=column)):
        with pytest.raises(ValueError, match="read-only"):
            change()
    with pytest.raises(AttributeError, match="no attribute 'maen'"):
        column.maen  # noqa: B018 - the attempt is the test


@pytest.mark.parametrize("window", [False, True])
def test_iteration_gives_every_row_once_as_a_dict(bank: Path, parts: list[Path], window: bool) -> None:
    """Iterating gives each row as a dict of its values, in order; batches give them in arrays, the last one shorter."""
    opened = ExperienceBank.open(parts if window else bank)
    rows = list(opened)
    assert [row["actions"] for row in rows] == list(range(20))
    assert rows[7]["observations"].tolist() == [7.0, 7.5]
    assert [len(batch["actions"]) for batch in opened.batches(8)] == [8, 8, 4]
    with pytest.raises(ExperienceError, match="positive"):
        next(opened.batches(0))


def test_one_shard_can_be_read_like_a_bank(parts: list[Path]) -> None:
    """A shard, by text or path, opens as a bank of one shard."""
    opened = ExperienceBank.open(str(parts[0]))
    assert opened["actions"].tolist() == [0, 1, 2, 3, 4]
    assert opened.shards == ("p0",)


def test_a_bank_without_rows_says_so_when_sampled(tmp_path: Path, parts: list[Path]) -> None:
    """Sampling an empty bank is an error with a hint; it still has columns, a length and no batches."""
    merge_shards([parts[1]], tmp_path / "empty.h5")
    with ExperienceBank.open(tmp_path / "empty.h5") as opened:
        assert len(opened) == 0
        assert opened["observations"].shape == (0, 2)
        assert list(opened.batches(5)) == []
        with pytest.raises(ExperienceError, match=r"has no rows to sample; did the environments"):
            opened.sample(1)
    with ShardWriter(tmp_path / "bare.h5"):
        pass
    assert ExperienceBank.open([tmp_path / "bare.h5", parts[0]]).columns == ("observations", "actions", "rewards")


def test_statistics_are_of_all_parts(parts: list[Path]) -> None:
    """A window's statistics are those of all its rows; a column that is not there is refused with those that are."""
    opened = ExperienceBank.open(parts)
    stats = opened.stats("rewards")
    assert (stats.count, stats.mean, stats.min, stats.max, stats.nans) == (20, -9.5, -19, 0, 0)
    assert float(stats.std) == pytest.approx(np.std(np.arange(20)))
    with pytest.raises(SchemaError, match="no column 'reward'; it has observations, actions, rewards"):
        opened.stats("reward")
    assert "rewards" in opened
    assert "reward" not in opened


def test_parts_that_differ_make_no_window(tmp_path: Path, parts: list[Path]) -> None:
    """A window over files with other columns names the file and the difference."""
    odd = write(tmp_path / "odd.h5", 0, 3, extra=np.zeros(3))
    with pytest.raises(SchemaError, match=r"odd\.h5 has an unexpected column 'extra'"):
        ExperienceBank.open([*parts, odd])
    with pytest.raises(ExperienceError, match="no bank to open"):
        ExperienceBank.open([])


def test_a_closed_bank_says_so(bank: Path) -> None:
    """After close, sampling and columns are an error; closing twice is not."""
    opened = ExperienceBank.open(bank)
    opened.close()
    opened.close()
    with pytest.raises(ExperienceError, match="is closed"):
        opened.sample(1)
    with pytest.raises(ExperienceError, match="is closed"):
        _ = opened["rewards"]


def test_a_bank_cut_short_is_damaged(bank: Path) -> None:
    """A bank that ends early is refused when it is opened."""
    bank.write_bytes(bank.read_bytes()[:-200])
    with pytest.raises(DamagedError):
        ExperienceBank.open(bank)


def test_reading_a_bank_that_was_opened_needs_no_h5py(bank: Path) -> None:
    """The reader's module does not import h5py; only opening does."""
    code = "import sys, rose_hpc.experience.bank; print('h5py' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
