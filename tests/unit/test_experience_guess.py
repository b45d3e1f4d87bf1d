"""Merging many shards by guessed rows: the same bank, and the same errors, as with all headers read first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shards import concatenated_digest, write, write_all

from rose_hpc import ShardWriter, merge_shards
from rose_hpc.errors import DamagedError, ExperienceError, SchemaError, UsageError
from rose_hpc.experience import merge
from rose_hpc.experience.guess import WrongGuessError, plan_by_size
from rose_hpc.experience.header import read_info

MANY = 70


@pytest.fixture
def read_first(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many shards were read before they were copied, for each merge that did so."""
    counts: list[int] = []
    read_shards = merge.read_shards

    def counted(paths):  # type: ignore[no-untyped-def]
        counts.append(len(paths))
        return read_shards(paths)

    monkeypatch.setattr(merge, "read_shards", counted)
    return counts


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("lengths", [[50] * MANY, [n % 9 * 10 + 10 for n in range(MANY)]], ids=["alike", "not alike"])
def test_a_good_guess_gives_the_same_bank(
    lengths: list[int], workers: int, tmp_path: Path, read_first: list[int]
) -> None:
    """Shards of one length, or of lengths that their sizes tell."""
    paths = write_all(tmp_path, lengths, width=200)
    info = merge_shards(paths, tmp_path / "bank.h5", workers=workers)
    assert (info.digest, info.rows) == (concatenated_digest(paths, tmp_path / "whole.h5"), sum(lengths))
    assert info == read_info(tmp_path / "bank.h5")
    alone = merge_shards([read_info(path) for path in paths], tmp_path / "other.h5", workers=workers)
    assert replace(alone, path=info.path) == info, "statistics too"
    assert read_first == [MANY], "only the merge that was given what the shards say"


def test_a_wrong_guess_changes_nothing(tmp_path: Path, read_first: list[int]) -> None:
    """A shard that is larger by what it says of itself has fewer rows than its size tells."""
    paths = write_all(tmp_path, [50] * MANY)
    paths[20].unlink()
    with ShardWriter(paths[20], attributes={"note": "x" * 900}, fsync=False) as shard:
        rng = np.random.default_rng(20)
        shard.extend(
            observations=rng.random((40, 3), np.float32),
            actions=rng.integers(0, 5, 40, np.int16),
            rewards=rng.random(40),
            terminations=np.zeros(40, bool),
        )
    guess = plan_by_size(paths)
    assert guess is not None
    with pytest.raises(WrongGuessError):
        guess[1].infos()
    info = merge_shards(paths, tmp_path / "bank.h5")
    assert info.digest == concatenated_digest(paths, tmp_path / "whole.h5")
    assert read_first == [MANY]
    assert {path.suffix for path in tmp_path.iterdir()} == {".h5"}, "nothing of the first attempt is left"


def test_an_empty_shard_is_not_guessed(tmp_path: Path, read_first: list[int]) -> None:
    """It says so little of itself that its size tells nothing."""
    paths = write_all(tmp_path, [50] * MANY)
    paths[30].unlink()
    write(paths[30], 0)
    info = merge_shards(paths, tmp_path / "bank.h5")
    assert info.digest == concatenated_digest(paths, tmp_path / "whole.h5")
    assert (info.rows, read_first) == (50 * (MANY - 1), [MANY])


def test_few_shards_or_known_ones_are_not_guessed(tmp_path: Path) -> None:
    """Reading a few headers is quicker than being wrong."""
    paths = write_all(tmp_path, [5] * MANY)
    assert plan_by_size(paths[:10]) is None
    assert plan_by_size([*paths[:-1], read_info(paths[-1])]) is None
    assert plan_by_size([tmp_path / "none.h5"] * MANY) is None


def test_what_is_wrong_is_said_as_ever(tmp_path: Path) -> None:
    """Damaged bytes, damaged headers, other columns, one given twice, the bank among them: by name, and no bank."""
    paths = write_all(tmp_path, [50] * MANY)
    bank = tmp_path / "bank.h5"
    sound = {path: path.read_bytes() for path in paths}
    for number, at in ((3, 600), (5, -30)):
        data = bytearray(sound[paths[number]])
        data[at] ^= 1
        paths[number].write_bytes(data)
    column = read_info(paths[7]).columns["rewards"]
    data = bytearray(sound[paths[7]])
    data[column.offset + 9] ^= 1
    paths[7].write_bytes(data)
    with pytest.raises(DamagedError) as raised:
        merge_shards(paths, bank)
    assert set(raised.value.paths) == {str(paths[3]), str(paths[5])}, "headers first"
    for number in (3, 5):
        paths[number].write_bytes(sound[paths[number]])
    with pytest.raises(DamagedError, match="column 'rewards' is not what was written") as raised:
        merge_shards(paths, bank)
    assert list(raised.value.paths) == [str(paths[7])]
    paths[7].unlink()
    write(paths[7], 50, width=4)
    with pytest.raises(SchemaError, match=r"env_7\.h5 has"):
        merge_shards(paths, bank)
    paths[7].write_bytes(sound[paths[7]])
    with pytest.raises(ExperienceError, match="is given twice"):
        merge_shards([*paths, paths[0]], bank)
    with pytest.raises(UsageError, match="is one of the shards"):
        merge_shards(paths, paths[9])
    assert not bank.exists()
    assert {path: path.read_bytes() for path in paths} == sound
