"""Merges that go on while their shards come: the bank of a batch merge, whatever the order; or no bank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import shards
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rose_hpc.errors import DamagedError, ExperienceError, SchemaError
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.schema import ShardInfo
from rose_hpc.experience.stream import Stream

ATTRIBUTES = {"run": "r", "iteration": 3}


def streamed(
    bank: Path, infos: list[ShardInfo], groups: list[list[int]], *, verify: bool = True, workers: int = 1
) -> ShardInfo:
    """The bank of shards that came in groups, by number; who is in none was left for the end."""
    rows = [info.rows for info in infos]
    for group in groups:
        Stream(bank, verify=verify, fsync=False).copy(rows, {n: infos[n] for n in group}, workers)
    return Stream(bank, verify=verify, fsync=False).finish(infos, ATTRIBUTES, workers)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_bank_is_that_of_a_batch_merge_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any lengths, any order and grouping of arrival, any number left for the end: the same rows and digests."""
    folder = tmp_path_factory.mktemp("stream")
    lengths = data.draw(st.lists(st.sampled_from([0, 1, 7, 100, 3000]), min_size=1, max_size=6).filter(any))
    order = data.draw(st.permutations(range(len(lengths))))
    count = data.draw(st.integers(0, len(order)))
    groups, left = [], order[:count]
    while left:
        size = data.draw(st.integers(1, len(left)))
        groups, left = [*groups, left[:size]], left[size:]
    while groups and not any(lengths[n] for n in groups[0]):
        groups = groups[1:]  # those are left for the end: somebody must say what the columns are
    if not groups:
        groups = [[lengths.index(max(lengths))]]
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            small.shrink(patch.setattr)
        infos = [read_info(path) for path in shards.write_all(folder, lengths)]
        alone = merge_shards(infos, folder / "alone.h5", attributes=ATTRIBUTES)
        workers = data.draw(st.integers(1, 3))
        together = streamed(folder / "bank.h5", infos, groups, workers=workers)
    assert replace(together, path=alone.path) == alone
    whole, rows = shards.columns_of(folder / "alone.h5"), shards.columns_of(folder / "bank.h5")
    assert all((whole[name] == rows[name]).all() for name in whole)


def test_unverified_too(tmp_path: Path) -> None:
    """Without verification the same rows are there, and no digests."""
    infos = [read_info(path) for path in shards.write_all(tmp_path, [100, 200, 50])]
    merge_shards(infos, tmp_path / "alone.h5", verify=False)
    bank = streamed(tmp_path / "bank.h5", infos, [[2], [0]], verify=False)
    assert bank.digest is None
    whole, rows = shards.columns_of(tmp_path / "alone.h5"), shards.columns_of(tmp_path / "bank.h5")
    assert all((whole[name] == rows[name]).all() for name in whole)


@pytest.mark.parametrize("when", ["as it comes", "at the end"])
def test_damage_is_found_and_named(tmp_path: Path, when: str) -> None:
    """A shard whose bytes have changed is named as soon as it is copied, and there is no bank."""
    paths = shards.write_all(tmp_path, [100, 200, 50])
    infos = [read_info(path) for path in paths]
    offset = infos[1].columns["rewards"].offset
    data = bytearray(paths[1].read_bytes())
    data[offset + 3] ^= 1
    paths[1].write_bytes(data)
    stream = Stream(tmp_path / "bank.h5", verify=True, fsync=False)
    rows = [info.rows for info in infos]
    stream.copy(rows, {0: infos[0]})
    calls = {
        "as it comes": lambda: stream.copy(rows, {2: infos[2], 1: infos[1]}),
        "at the end": lambda: stream.finish(infos, ATTRIBUTES),
    }
    with pytest.raises(DamagedError) as damaged:
        calls[when]()
    assert list(damaged.value.paths) == [str(paths[1])]


def test_a_wrong_guess_is_found_before_anything_is_copied(tmp_path: Path) -> None:
    """A shard of another length than was expected is refused, as it comes and at the end; and so are other columns."""
    infos = [read_info(path) for path in shards.write_all(tmp_path, [100, 200])]
    other = read_info(shards.write(tmp_path / "wide.h5", 100, width=4))
    stream = Stream(tmp_path / "bank.h5", verify=True, fsync=False)
    stream.copy([100, 100], {0: infos[0]})
    with pytest.raises(SchemaError, match=r"env_1.h5 has 200 rows, and 100 were expected"):
        stream.copy([100, 100], {1: infos[1]})
    with pytest.raises(SchemaError, match="200 rows"):
        stream.finish(infos, ATTRIBUTES)
    with pytest.raises(SchemaError, match="observations"):
        stream.copy([100, 100], {1: other})
    with pytest.raises(ExperienceError, match="1 shards have come, and 2 were expected"):
        stream.finish(infos[:1], ATTRIBUTES)


def test_who_was_copied_must_be_who_was_accepted(tmp_path: Path) -> None:
    """A shard that was made anew after it was copied is not mixed with what was there of the old one."""
    infos = [read_info(path) for path in shards.write_all(tmp_path, [100, 100])]
    stream = Stream(tmp_path / "bank.h5", verify=True, fsync=False)
    stream.copy([100, 100], {0: infos[0]})
    infos[0].path.unlink()
    anew = read_info(shards.write(infos[0].path, 100, seed=9))
    with pytest.raises(ExperienceError, match="is not the shard that was copied"):
        stream.finish([anew, infos[1]], ATTRIBUTES)


def test_only_new_bytes_are_copied_at_the_end(tmp_path: Path) -> None:
    """Shards that have been copied are not opened again."""
    infos = [read_info(path) for path in shards.write_all(tmp_path, [1000, 1000, 1000])]
    alone = merge_shards(infos, tmp_path / "alone.h5")
    stream = Stream(tmp_path / "bank.h5", verify=True, fsync=True)
    stream.copy([1000] * 3, {2: infos[2], 0: infos[0]})
    for number in (0, 2):
        infos[number].path.unlink()
    assert stream.finish(infos, ATTRIBUTES, workers=2).digest == alone.digest
