"""Writing shards row by row and by arrays, and publishing them whole."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rose_hpc.errors import ExperienceError, SchemaError
from rose_hpc.experience import buffers
from rose_hpc.experience.format import read_info
from rose_hpc.experience.schema import ShardInfo
from rose_hpc.experience.shard import ShardWriter

TRANSITION: dict[str, Any] = {
    "observation": np.arange(4, dtype=np.float32),
    "action": 1,
    "reward": 1.0,
    "next_observation": np.arange(4, dtype=np.float32) + 1,
    "terminated": False,
    "truncated": True,
}


def columns_of(path: Path) -> dict[str, np.ndarray]:
    """What plain h5py finds in a file."""
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in file}


def test_transitions_come_back_under_gymnasiums_plural_names(tmp_path: Path) -> None:
    """A transition appended with singular names is read by plain h5py as rows of plural columns, in these dtypes."""
    with ShardWriter(tmp_path / "a.h5") as shard:
        for _ in range(3):
            shard.append(**TRANSITION)
        assert shard.rows == 3
    found = columns_of(tmp_path / "a.h5")
    expected = {
        "observations": (np.float32, (3, 4)),
        "actions": (np.int64, (3,)),
        "rewards": (np.float64, (3,)),
        "next_observations": (np.float32, (3, 4)),
        "terminations": (np.bool_, (3,)),
        "truncations": (np.bool_, (3,)),
    }
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == expected
    assert found["observations"][2].tolist() == [0, 1, 2, 3]
    assert found["truncations"].all()
    assert not found["terminations"].any()


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (np.full((8, 6, 3), 200, np.uint8), np.int64(3)),  # image, discrete
        (np.linspace(0, 1, 5), np.array([0.5, -0.5], np.float32)),  # vector, continuous
        (np.float16(0.5), np.array([[1, 2], [3, 4]], np.int16)),  # scalar, matrix
        ([1.0, 2.0], (True, False)),  # plain lists
    ],
)
def test_any_numeric_observation_and_action_keeps_its_dtype_and_shape(
    tmp_path: Path, observation: Any, action: Any
) -> None:
    """Vectors, images, scalars, discrete and continuous actions and further columns come back as they were given."""
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        for _ in range(2):
            shard.append(observation=observation, action=action, reward=0.0, log_probability=np.float32(-0.5))
    found = columns_of(tmp_path / "a.h5")
    for name, value in (("observations", observation), ("actions", action), ("log_probability", np.float32(-0.5))):
        assert found[name].dtype == np.asarray(value).dtype
        assert np.array_equal(found[name], [value, value])


def test_the_other_byte_order_is_turned(tmp_path: Path) -> None:
    """As netCDF and FITS have it: the same shard as from the machine's own order, by rows and by arrays."""
    values = {"observations": np.arange(12, dtype=np.float32).reshape(6, 2), "rewards": np.arange(6.0)}
    with ShardWriter(tmp_path / "a.h5") as shard:
        shard.extend(**values)
    with ShardWriter(tmp_path / "b.h5") as shard:
        shard.extend(**{name: array[:3].astype(array.dtype.newbyteorder()) for name, array in values.items()})
        for row in range(3, 6):
            shard.append(**{name: array.astype(array.dtype.newbyteorder())[row] for name, array in values.items()})
    assert read_info(tmp_path / "a.h5").digest == read_info(tmp_path / "b.h5").digest


def test_rows_are_copied(tmp_path: Path) -> None:
    """A simulator that reuses its observation buffer does not change rows that were appended or extended before."""
    buffer, block = np.zeros(4, np.float32), np.zeros((2, 4), np.float32)
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        for step in range(5):
            buffer[:] = step
            shard.append(observation=buffer)
        for step in range(5, 7):
            block[:] = step
            shard.extend(observations=block)
        buffer[:], block[:] = -1, -1
    assert columns_of(tmp_path / "a.h5")["observations"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 6, 6]


def test_append_and_extend_mix_and_take_either_name(tmp_path: Path) -> None:
    """Rows keep their order over append and extend, singular and plural names, and keywords in any order."""
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.append(action=0, reward=0)
        shard.extend(rewards=[1.0, 2.0], action=[1, 2])
        shard.append(rewards=3.0, actions=3)
        shard.extend(actions=np.empty(0, np.int64), rewards=np.empty(0))
    found = columns_of(tmp_path / "a.h5")
    assert found["actions"].tolist() == [0, 1, 2, 3]
    assert found["rewards"].tolist() == [0.0, 1.0, 2.0, 3.0]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=hnp.arrays(
        dtype=st.sampled_from(["?", "i1", "u2", "i4", "f4", "f8"]),
        shape=st.tuples(st.integers(1, 40), *[st.integers(1, 3)] * 2),
    ),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    single=st.booleans(),
)
def test_digest_and_statistics_depend_on_content_alone(
    tmp_path: Path, array: np.ndarray, cuts: list[int], single: bool
) -> None:
    """The same rows give the same digest and statistics, written at once, in any portions, or one by one."""
    with ShardWriter(tmp_path / "whole.h5", fsync=False) as shard:
        shard.extend(values=array, rewards=np.arange(len(array)))
    with ShardWriter(tmp_path / "parts.h5", fsync=False) as shard:
        edges = [0, *sorted(min(cut, len(array)) for cut in cuts), len(array)]
        for start, stop in pairwise(edges):
            rows = range(start, stop)
            if single:
                for row in rows:
                    shard.append(values=array[row], rewards=float(row))
            elif rows:
                shard.extend(values=array[start:stop], rewards=[float(row) for row in rows])
    whole, parts = read_info(tmp_path / "whole.h5"), read_info(tmp_path / "parts.h5")
    assert whole.digest == parts.digest
    assert whole.columns["values"].stats == parts.columns["values"].stats
    assert np.array_equal(columns_of(tmp_path / "parts.h5")["values"], array, equal_nan=array.dtype.kind == "f")


def test_other_content_has_another_digest(tmp_path: Path) -> None:
    """One changed element, another dtype or another name changes the file's digest."""
    digests = set()
    for name, array in [("a", [1, 2]), ("a", [1, 3]), ("b", [1, 2]), ("a", np.array([1, 2], "i4")), ("a", [[1], [2]])]:
        with ShardWriter(tmp_path / "x.h5", fsync=False) as shard:
            shard.extend(**{name: array})
        digests.add(read_info(tmp_path / "x.h5").digest)
    assert len(digests) == 5


def test_more_than_memory_holds_goes_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard larger than the memory allowed has the content of one that was kept in memory, and leaves no file."""
    rows = np.random.default_rng(0).random((50_000, 8))
    with ShardWriter(tmp_path / "memory.h5", fsync=False) as shard:
        shard.extend(values=rows)
    monkeypatch.setattr(buffers.Store.__init__, "__defaults__", (1_000_000,))
    with ShardWriter(tmp_path / "disk.h5", fsync=False) as shard:
        shard.extend(values=rows)
        assert shard._store._end > 1_000_000
    assert read_info(tmp_path / "disk.h5").digest == read_info(tmp_path / "memory.h5").digest
    assert np.array_equal(columns_of(tmp_path / "disk.h5")["values"], rows)
    assert {file.name for file in tmp_path.iterdir()} == {"disk.h5", "memory.h5"}


@pytest.mark.parametrize(
    ("later", "names"),
    [
        ({"observation": np.zeros(3, np.float32)}, ["'observations'", "float32(4,)", "float32(3,)"]),
        ({"observation": np.zeros(4, np.float64)}, ["'observations'", "float32(4,)", "float64(4,)"]),
        ({"action": 0.5}, ["'actions'", "int64", "float64"]),
        ({"action": np.int32(1)}, ["'actions'", "int64", "int32"]),
        ({"action": 2**70}, ["'actions'", "int64"]),
        ({"action": "left"}, ["'actions'", "<U4"]),
        ({"action": None}, ["'actions'", "object"]),
        ({"reward": np.zeros(2)}, ["'rewards'", "float64(2,)"]),
        ({"terminated": 2}, ["'terminations'", "bool", "int64"]),
        ({"extra": 1}, ["unexpected 'extra'"]),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_name(tmp_path: Path, later: dict[str, Any], names: list[str]) -> None:
    """A later row of another dtype, shape or set of columns is a SchemaError that names column and both."""
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.append(**TRANSITION)
        with pytest.raises(SchemaError) as caught:
            shard.append(**{**TRANSITION, **later})
        shard.append(**TRANSITION)
    assert not [name for name in names if name not in str(caught.value)]
    assert read_info(tmp_path / "a.h5").rows == 2


def test_missing_and_uneven_columns_are_refused(tmp_path: Path) -> None:
    """A call without one of the columns, or with columns of different lengths, is refused by name and adds nothing."""
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.append(action=1, reward=1.0)
        with pytest.raises(SchemaError, match="missing 'rewards'"):
            shard.append(action=1)
        with pytest.raises(SchemaError, match="'actions' 2, 'rewards' 3"):
            shard.extend(actions=[1, 2], rewards=[1.0, 2.0, 3.0])
        with pytest.raises(SchemaError, match="twice"):
            shard.append(action=1, actions=1, reward=1.0)
        with pytest.raises(SchemaError, match="no columns"):
            shard.append()
        with pytest.raises(SchemaError, match="one value to extend by"):
            ShardWriter(tmp_path / "b.h5").extend(actions=1)
    assert read_info(tmp_path / "a.h5").rows == 1


def test_pythons_numbers_take_the_dtype_of_their_column(tmp_path: Path) -> None:
    """A float32 reward column takes Python floats and ints, an int8 column Python ints that fit, and no others."""
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.append(reward=np.float32(0.5), small=np.int8(1))
        shard.append(reward=0.25, small=100)
        shard.append(reward=1, small=0)
        with pytest.raises(SchemaError, match="'small' is int8"):
            shard.append(reward=1, small=1000)
    found = columns_of(tmp_path / "a.h5")
    assert found["rewards"].dtype == np.float32
    assert found["rewards"].tolist() == [0.5, 0.25, 1.0]
    assert found["small"].tolist() == [1, 100, 0]


@pytest.mark.parametrize("value", ["text", None, object(), 1 + 2j, np.datetime64("2020-01-01"), [[1], [2, 3]], b"x"])
def test_what_is_not_a_number_is_refused(tmp_path: Path, value: Any) -> None:
    """Text, objects, complex numbers, dates and ragged lists are a SchemaError that names the column."""
    with pytest.raises(SchemaError, match="'thing'"), ShardWriter(tmp_path / "a.h5") as shard:
        shard.append(thing=value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/b", ".", "", "x\0y"])
def test_names_that_no_column_can_have_are_refused(tmp_path: Path, name: str) -> None:
    """A column name that HDF5 would take for a path is a SchemaError."""
    with pytest.raises(SchemaError, match="cannot be named"), ShardWriter(tmp_path / "a.h5") as shard:
        shard.append(**{name: 1})


def test_an_exception_in_the_block_publishes_nothing(tmp_path: Path) -> None:
    """When the block raises, no file appears, an older shard of that name stays, and the exception passes through."""
    (tmp_path / "a.h5").write_text("older")
    shard = ShardWriter(tmp_path / "a.h5")
    shard.append(**TRANSITION)
    with pytest.raises(ZeroDivisionError), shard:
        _ = 1 / 0
    assert (tmp_path / "a.h5").read_text() == "older"
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_nothing_is_visible_before_the_block_ends(tmp_path: Path) -> None:
    """A shard appears at its name only when it is whole."""
    with ShardWriter(tmp_path / "a.h5") as shard:
        shard.extend(actions=np.arange(100_000))
        assert not (tmp_path / "a.h5").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_a_closed_writer_takes_no_more_rows(tmp_path: Path) -> None:
    """After the end, append and extend say that the writer is closed; close returns what is known of the shard."""
    shard = ShardWriter(tmp_path / "a.h5")
    shard.append(**TRANSITION)
    info = shard.close()
    assert info == read_info(tmp_path / "a.h5")
    assert (info.rows, info.kind) == (1, "shard")
    with pytest.raises(ExperienceError, match="closed"):
        shard.append(**TRANSITION)
    with pytest.raises(ExperienceError, match="closed"):
        shard.extend(actions=[1])
    shard.abort()
    assert (tmp_path / "a.h5").exists()


@pytest.mark.parametrize("columns", [{}, {"actions": np.empty((0, 2), np.float32), "rewards": np.empty(0)}])
def test_a_shard_without_rows_is_valid(tmp_path: Path, columns: dict[str, np.ndarray]) -> None:
    """A shard with no columns, or with no rows, is published and read back, with a digest."""
    with ShardWriter(tmp_path / "a.h5") as shard:
        if columns:
            shard.extend(**columns)
    info = read_info(tmp_path / "a.h5")
    assert (info.rows, tuple(info.columns)) == (0, tuple(columns))
    assert info.digest


def test_attributes_and_statistics_come_back(tmp_path: Path) -> None:
    """What is known of a shard survives file and JSON; NaN rewards are counted and left out of the rest."""
    attributes = {"run": "r-1", "iteration": 3, "environment": "env_1", "seed": 7, "parameters": {"epsilon": 0.1}}
    with ShardWriter(tmp_path / "a.h5", attributes={**attributes, "note": None}) as shard:
        shard.extend(rewards=[1.0, np.nan, 3.0, np.inf], actions=[[1, 2], [3, 4], [5, 6], [7, 9]])
    info = read_info(tmp_path / "a.h5")
    assert info.attributes == attributes
    assert info.bytes == (tmp_path / "a.h5").stat().st_size
    rewards, actions = info.columns["rewards"].stats, info.columns["actions"].stats
    assert rewards is not None
    assert actions is not None
    assert (rewards.nans, rewards.count, rewards.min, rewards.max) == (1, 3, 1.0, np.inf)
    assert actions.mean.tolist() == [4.0, 5.25]
    assert actions.std.tolist() == pytest.approx(np.std([[1, 2], [3, 4], [5, 6], [7, 9]], axis=0).tolist())
    assert ShardInfo.from_json(json.loads(json.dumps(info.to_json(), allow_nan=False))) == info


@pytest.mark.parametrize(
    "attributes", [{"run": object()}, {"parameters": {"x": object()}}, {"kind": "x"}, {"seed": 2**70}]
)
def test_attributes_that_are_not_plain_are_refused(tmp_path: Path, attributes: dict[str, Any]) -> None:
    """An attribute that HDF5 and JSON cannot hold, or that is the format's own, is refused before a row is written."""
    with pytest.raises(SchemaError, match=next(iter(attributes))):
        ShardWriter(tmp_path / "a.h5", attributes=attributes)


def test_a_folder_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    """A path in a missing folder is refused when the writer is made, not after an hour of simulation."""
    with pytest.raises(ExperienceError, match="nowhere is not a folder"):
        ShardWriter(tmp_path / "nowhere" / "a.h5")


def test_the_file_has_what_hdf5_1_10_can_read(tmp_path: Path) -> None:
    """Columns are contiguous, unfiltered datasets at the root, in HDF5 1.8's file format, where the header says."""
    with ShardWriter(tmp_path / "a.h5") as shard:
        shard.append(**TRANSITION)
    info = read_info(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file.id.get_create_plist().get_version()[0] == 2  # the superblock of HDF5 1.8 to 1.10
        for name, column in info.columns.items():
            assert file[name].chunks is None
            assert file[name].id.get_offset() == column.offset
            assert column.offset % 64 == 0
