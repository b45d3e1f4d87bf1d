"""Plans of merges, and merging shards into banks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rose_hpc.errors import DamagedError, ExperienceError, SchemaError, UsageError
from rose_hpc.experience import copying, digest, files, merge, plan
from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards, plan_spans
from rose_hpc.experience.scan import scan
from rose_hpc.experience.schema import Column, ShardInfo
from rose_hpc.experience.shard import ShardWriter

SCHEMA = {"observations": Column("float32", (3,)), "rewards": Column("float64", ()), "codes": Column("uint8", (5, 2))}


def info(name: str, rows: int, columns: dict[str, Column] | None = None, **attributes: Any) -> ShardInfo:
    """A shard that exists on paper."""
    return ShardInfo(Path(name), "shard", rows, 0, SCHEMA if columns is None else columns, attributes, (0, rows))


def write(path: Path, rows: int, seed: int = 0, **attributes: Any) -> Path:
    """A shard of random rows."""
    rng = np.random.default_rng(seed)
    with ShardWriter(path, fsync=False, attributes=attributes) as shard:
        shard.extend(
            observations=rng.random((rows, 3)).astype(np.float32),
            rewards=rng.random(rows),
            codes=rng.integers(0, 255, (rows, 5, 2), np.uint8),
        )
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks and blocks of a few bytes, so that small shards have every edge that large ones have."""
    small.shrink(monkeypatch.setattr)
    return small.CHUNK


# -- plans -------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_every_row_is_planned_exactly_once_and_in_order(lengths: list[int]) -> None:
    """The spans of a plan cover every row of every shard, and of the bank, once, in the order of the shards."""
    shards = [info(f"s{n}.h5", rows) for n, rows in enumerate(lengths)]
    made = plan_spans(shards)
    planned = [(span.shard, row) for span in made.spans for row in range(span.start, span.stop)]
    assert planned == [(n, row) for n, rows in enumerate(lengths) for row in range(rows)]
    targets = [at for span in made.spans for at in range(span.target, span.target + span.stop - span.start)]
    assert targets == list(range(sum(lengths)))
    assert made.rows == sum(lengths)
    assert made.offsets == tuple(np.cumsum([0, *lengths]).tolist())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6), count=st.integers(1, 9))
def test_every_byte_is_one_workers(small_chunks: int, lengths: list[int], count: int) -> None:
    """The shares of a plan cover every byte of every column once, in order, and no leaf of a shard lies in two."""
    made = plan_spans([info(f"s{n}.h5", rows) for n, rows in enumerate(lengths)])
    seen: dict[tuple[int, str], list[int]] = {}
    targets: dict[str, list[int]] = {name: [] for name in SCHEMA}
    for number in range(count):
        for piece in plan.pieces_of_share(made, number, count):
            assert piece.start % small_chunks == 0
            seen.setdefault((piece.shard, piece.column), []).extend(range(piece.start, piece.start + piece.size))
            targets[piece.column].extend(range(piece.target, piece.target + piece.size))
    sizes = {name: column.row_bytes for name, column in SCHEMA.items()}
    expected = {(n, name): list(range(rows * sizes[name])) for n, rows in enumerate(lengths) if rows for name in SCHEMA}
    assert seen == expected
    assert all(found == list(range(sum(lengths) * sizes[name])) for name, found in targets.items())


def test_shares_are_of_one_size() -> None:
    """However unequal the shards, shares differ by a few chunks; one worker has one, and no share is huge."""
    made = plan_spans([info(f"s{n}.h5", rows) for n, rows in enumerate([10**7, 3, 0, 2 * 10**6, 1])])
    count = plan.count_shares(made.bytes, 4)
    sizes = [sum(piece.size for piece in plan.pieces_of_share(made, number, count)) for number in range(count)]
    assert sum(sizes) == made.bytes
    assert max(sizes) - min(sizes) <= 3 * len(SCHEMA) * digest.CHUNK
    assert plan.count_shares(10**15, 1) == 1
    assert 10**15 / plan.count_shares(10**15, 4) <= 2**30


@given(start=st.integers(0, 50), size=st.integers(1, 60), unit=st.integers(1, 30), units=st.integers(1, 4))
def test_blocks_read_every_byte_and_write_every_unit_once(start: int, size: int, unit: int, units: int) -> None:
    """Blocks follow upon each other, fit the buffer, and hold whole the units that start in the piece."""
    stop, step = start + size, unit * units
    blocks = list(copying._blocks(start, stop, unit, step))
    assert [a for a, _ in blocks] == [start, *(b for _, b in blocks[:-1])]
    assert blocks[-1][1] >= stop
    assert all(0 < b - a <= step for a, b in blocks)
    first = -(-start // unit) * unit
    written = [(a // unit, b // unit) for a, b in blocks if a >= first]
    assert [n for a, b in written for n in range(a, b)] == [n for n in range(stop) if start <= n * unit < stop]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({**SCHEMA, "rewards": Column("float32", ())}, "'rewards' as float32 instead of float64"),
        ({**SCHEMA, "codes": Column("uint8", (2, 5))}, r"'codes' as uint8\(2, 5\) instead of uint8\(5, 2\)"),
        ({**SCHEMA, "extra": Column("int64", ())}, "an unexpected column 'extra'"),
        ({"rewards": SCHEMA["rewards"]}, "no column 'observations', no column 'codes'"),
    ],
)
def test_shards_that_differ_are_named_with_the_difference(columns: dict[str, Column], text: str) -> None:
    """A shard with other columns, dtypes or shapes is a SchemaError that names it and what differs."""
    with pytest.raises(SchemaError, match=rf"odd\.h5 has {text}"):
        plan_spans([info("a.h5", 3), info("b.h5", 3), info("odd.h5", 3, columns)])


def test_shards_without_rows_need_no_columns() -> None:
    """An environment that wrote nothing contributes its name and no row, whatever its columns are."""
    made = plan_spans([info("none.h5", 0, {}), info("a.h5", 3), info("odd.h5", 0, {"x": Column("int8", ())})])
    assert (made.offsets, made.names, tuple(made.columns)) == ((0, 0, 3, 3), ("none", "a", "odd"), tuple(SCHEMA))


def test_duplicates_and_strangers_are_refused() -> None:
    """One file twice, one environment twice, another run and another iteration are each refused by name."""
    a = info("a.h5", 1, run="r", iteration=0, environment="env_1")
    for other, text in [
        (info("./a.h5", 1), "a.h5 is given twice"),
        (info("b.h5", 1, run="r", iteration=0, environment="env_1"), "are both of environment 'env_1'"),
        (info("b.h5", 1, run="q", iteration=0), "a.h5 is of run 'r', b.h5 of 'q'"),
        (info("b.h5", 1, run="r", iteration=1), "a.h5 is of iteration 0, b.h5 of 1"),
    ]:
        with pytest.raises(ExperienceError, match=text):
            plan_spans([a, other])
    with pytest.raises(ExperienceError, match="no shards"):
        plan_spans([])


def test_a_late_shard_is_merged_where_that_is_said() -> None:
    """Shards of several iterations make one bank when it is asked for; those of several runs never do."""
    late = [info("a.h5", 1, run="r", iteration=1), info("b.h5", 1, run="r", iteration=0)]
    assert plan_spans(late, late=True).rows == 2
    with pytest.raises(ExperienceError, match="is of run"):
        plan_spans([*late, info("c.h5", 1, run="q", iteration=1)], late=True)


# -- merging -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=5),
    workers=st.sampled_from([1, 2, 5, None]),
    verify=st.booleans(),
)
def test_a_bank_is_the_shards_one_after_another(
    tmp_path: Path, small_chunks: int, lengths: list[int], workers: int | None, verify: bool
) -> None:
    """A bank is np.concatenate of its shards, for any lengths and workers, with the digests of a shard of all rows."""
    paths = [write(tmp_path / f"s{n}.h5", rows, seed=n) for n, rows in enumerate(lengths)]
    bank = merge_shards(paths, tmp_path / "bank.h5", workers=workers, verify=verify)
    assert bank == read_info(tmp_path / "bank.h5")
    assert (bank.kind, bank.rows, bank.shard_names) == ("bank", sum(lengths), tuple(path.stem for path in paths))
    wholes = {}
    for name in SCHEMA:
        parts = []
        for path in paths:
            with h5py.File(path, "r") as file:
                parts.append(file[name][:])
        wholes[name] = np.concatenate(parts)
        with h5py.File(tmp_path / "bank.h5", "r") as file:
            assert np.array_equal(file[name][:], wholes[name])
    with ShardWriter(tmp_path / "whole.h5", fsync=False) as shard:
        shard.extend(**wholes)
    whole = read_info(tmp_path / "whole.h5")
    assert bank.digest == (whole.digest if verify else None)
    for name, column in bank.columns.items():
        assert column.stats is not None
        assert whole.columns[name].stats is not None
        for ours, theirs in zip(column.stats.values, whole.columns[name].stats.values, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_a_bank_of_real_chunks_has_the_digest_of_its_rows(tmp_path: Path) -> None:
    """With the format's own chunk size too, chunks that straddle shards get the digest of their rows."""
    rng = np.random.default_rng(0)
    rows = rng.random((9, 200_000))
    cuts = [0, 1, 500_000, 1_100_000, rows.size]
    for number, (start, stop) in enumerate(pairwise(cuts)):
        with ShardWriter(tmp_path / f"s{number}.h5", fsync=False) as shard:
            shard.extend(rewards=rows.ravel()[start:stop])
    with ShardWriter(tmp_path / "whole.h5", fsync=False) as shard:
        shard.extend(rewards=rows.ravel())
    paths = [tmp_path / f"s{number}.h5" for number in range(4)]
    whole = read_info(tmp_path / "whole.h5").digest
    assert {merge_shards(paths, tmp_path / "bank.h5", workers=n).digest for n in (1, 2)} == {whole}


def test_a_bank_knows_where_it_came_from(tmp_path: Path) -> None:
    """Run and iteration come from the shards, further attributes from the caller, offsets and names from the order."""
    paths = [
        write(tmp_path / f"env_{n}.h5", n, run="r", iteration=4, environment=f"env_{n}", seed=n) for n in (2, 0, 3)
    ]
    info = merge_shards(paths, tmp_path / "bank.h5", attributes={"note": "x"}, fsync=True)
    assert info.attributes == {"run": "r", "iteration": 4, "note": "x"}
    assert (info.shard_offsets, info.shard_names) == ((0, 2, 2, 5), ("env_2", "env_0", "env_3"))
    with h5py.File(tmp_path / "bank.h5", "r") as file:
        assert file.attrs["shard_offsets"].tolist() == [0, 2, 2, 5]
        assert file.attrs["shard_names"].tolist() == [b"env_2", b"env_0", b"env_3"]
        assert set(file) == set(SCHEMA)


def test_what_is_known_of_a_shard_stands_for_its_path(tmp_path: Path) -> None:
    """Merging ShardInfos, as they come back from a message, makes the bank that merging paths makes."""
    paths = [write(tmp_path / f"s{n}.h5", 10, seed=n) for n in range(3)]
    infos = [ShardInfo.from_json(read_info(path).to_json()) for path in paths]
    assert merge_shards(infos, tmp_path / "a.h5").digest == merge_shards(paths, tmp_path / "b.h5").digest


def test_many_shards_fit_in_one_bank(tmp_path: Path) -> None:
    """Names and offsets of 5,000 shards with long names, more than one HDF5 attribute used to hold, come back."""
    part = read_info(write(tmp_path / "part.h5", 1))
    shards = []
    for number in range(5000):
        path = tmp_path / f"{'long' * 10}_{number}.h5"
        os.link(part.path, path)
        shards.append(replace(part, path=path))
    bank = merge_shards(shards, tmp_path / "bank.h5", workers=1)
    assert read_info(tmp_path / "bank.h5") == bank
    assert bank.shard_names[-1].endswith("_4999")


# -- damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_damaged_shards_are_named_and_nothing_is_published(tmp_path: Path, workers: int) -> None:
    """One flipped bit per shard, in any column, is found; all such shards are named at once, and none is touched."""
    paths = [write(tmp_path / f"s{n}.h5", 400, seed=n) for n in range(4)]
    columns = read_info(paths[0]).columns
    flip(paths[1], columns["codes"].offset + 7)
    flip(paths[3], columns["rewards"].offset + 8 * 399)
    contents = [path.read_bytes() for path in paths]
    with pytest.raises(DamagedError, match=r"s1\.h5 is damaged: column 'codes'.*s3\.h5 is damaged") as caught:
        merge_shards(paths, tmp_path / "bank.h5", workers=workers)
    assert caught.value.paths == (str(paths[1]), str(paths[3]))
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    assert [path.read_bytes() for path in paths] == contents


def test_shards_that_cannot_be_read_are_named_too(tmp_path: Path) -> None:
    """Shards cut short, emptied, missing or overwritten with something else are named in one DamagedError."""
    paths = [write(tmp_path / f"s{n}.h5", 400, seed=n) for n in range(5)]
    os.truncate(paths[0], 2000)
    os.truncate(paths[1], 0)
    paths[2].unlink()
    paths[3].write_text("something else")
    with pytest.raises(DamagedError) as caught:
        merge_shards(paths, tmp_path / "bank.h5")
    assert caught.value.paths == tuple(map(str, paths[:4]))


@pytest.mark.parametrize("verify", [True, False])
def test_a_shard_cut_short_after_it_was_looked_at_is_damaged(tmp_path: Path, verify: bool) -> None:
    """A shard that shrank or went away since its facts were taken is named, verified or not."""
    infos = [read_info(write(tmp_path / f"s{n}.h5", 4000, seed=n)) for n in range(3)]
    os.truncate(infos[0].path, infos[0].bytes // 2)
    infos[2].path.unlink()
    with pytest.raises(DamagedError, match=r"it ends early.*it cannot be opened") as caught:
        merge_shards(infos, tmp_path / "bank.h5", verify=verify)
    assert caught.value.paths == (str(infos[0].path), str(infos[2].path))


def test_an_older_bank_stays_when_merging_fails(tmp_path: Path) -> None:
    """The bank of that name is replaced by a whole one, or not at all."""
    path = write(tmp_path / "s.h5", 100)
    before = merge_shards([path], tmp_path / "bank.h5")
    flip(path, read_info(path).columns["rewards"].offset)
    with pytest.raises(DamagedError):
        merge_shards([path], tmp_path / "bank.h5")
    assert read_info(tmp_path / "bank.h5") == before


def test_a_bank_cannot_be_one_of_its_shards(tmp_path: Path) -> None:
    """A bank path that is a shard's is refused before anything is written."""
    path = write(tmp_path / "s.h5", 10)
    with pytest.raises(UsageError, match="is one of the shards"):
        merge_shards([path], tmp_path / "." / "s.h5")


# -- systems that refuse -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_systems_without_copy_file_range_copy_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Where the kernel or file system does not copy between files, reading and writing makes the same bank."""
    paths = [write(tmp_path / f"s{n}.h5", 100, seed=n) for n in range(2)]
    merge_shards(paths, tmp_path / "a.h5")

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_file_system", lambda fd: 0x6969)  # NFS
    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(files, "BUFFER", 100)
    merge_shards(paths, tmp_path / "b.h5", verify=False)
    with ExperienceBank.open(tmp_path / "a.h5") as a, ExperienceBank.open(tmp_path / "b.h5") as b:
        assert all(np.array_equal(a[name], b[name]) for name in SCHEMA)


@pytest.mark.parametrize(("kind", "copied"), [(0x6969, True), (0x9123683E, False), (0xEF53, False)])
def test_servers_copy_where_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, copied: bool) -> None:
    """An unverified merge leaves the copying to an NFS server, but not unaligned spans to Btrfs nor any to ext4."""
    paths = [write(tmp_path / f"s{n}.h5", 100, seed=n) for n in range(2)]
    expected = merge_shards(paths, tmp_path / "a.h5").digest
    calls = []
    real = os.copy_file_range

    def count(*arguments: Any) -> int:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(files, "_file_system", lambda fd: kind)
    monkeypatch.setattr(os, "copy_file_range", count)
    merge_shards(paths, tmp_path / "b.h5", verify=False)
    assert bool(calls) == copied
    columns = scan(tmp_path / "b.h5", read_info(tmp_path / "b.h5").columns, 200)
    assert replace(read_info(tmp_path / "b.h5"), columns=columns).digest == expected


@given(st.integers(0, 20_000), st.integers(0, 5), st.sampled_from([0, 64]), st.integers(0, 30_000))
def test_blocks_are_shared_where_they_lie_alike(source: int, blocks: int, more: int, size: int) -> None:
    """All blocks that are wholly in a range of both files, and no part of one; none where they do not fit."""
    target = source + blocks * 4096 + more
    start, stop = files._copied_elsewhere(0x58465342, source, target, size)
    assert 0 <= start <= stop <= size
    whole = [at for at in range(size) if (source + at) % 4096 == (target + at) % 4096 == 0 and at + 4096 <= size]
    shared = range(start, stop, 4096)
    assert list(shared) == whole
    assert (stop - start) % 4096 == 0


def test_rollouts_of_whole_blocks_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that shares blocks, shards of 2^n rows are moved by it but for the edges, to the same bank."""
    for number in range(3):
        with ShardWriter(tmp_path / f"{number}.h5", fsync=False) as shard:
            shard.extend(observations=np.random.default_rng(number).random((4096, 4), np.float32))
    paths = [tmp_path / f"{number}.h5" for number in range(3)]
    expected = merge_shards(paths, tmp_path / "a.h5").digest
    moved = []
    real = os.copy_file_range

    def count(*arguments: Any) -> int:
        moved.append(real(*arguments))
        assert all(offset % 4096 == 0 for offset in (arguments[2], arguments[3], arguments[4]))
        return moved[-1]

    monkeypatch.setattr(files, "_file_system", lambda fd: 0x58465342)  # XFS
    monkeypatch.setattr(os, "copy_file_range", count)
    bank = merge_shards(paths, tmp_path / "b.h5", verify=False, workers=1)
    assert sum(moved) >= 3 * (65_536 - 4096)
    assert replace(bank, columns=scan(bank.path, bank.columns, bank.rows)).digest == expected


def test_a_disk_that_is_too_small_is_known_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space is reserved first: when the file system refuses it, no byte of a shard has been read."""
    path = write(tmp_path / "s.h5", 100)

    def full(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(merge, "reserve", full)
    monkeypatch.setattr(copying, "read_into", None)
    with pytest.raises(ExperienceError, match=r"cannot write .*bank\.h5: No space left on device"):
        merge_shards([path], tmp_path / "bank.h5")
    assert [file.name for file in tmp_path.iterdir()] == ["s.h5"]


def test_reserving_more_than_there_is_raises(tmp_path: Path) -> None:
    """The file system's own refusal comes through, and the file is not written."""
    with files.opened(tmp_path / "x", os.O_RDWR | os.O_CREAT) as fd, pytest.raises(OSError, match=r"space|large"):
        files.reserve(fd, 2**62)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full, the error says so and names the bank; no scratch file stays."""
    path = write(tmp_path / "s.h5", 100)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ExperienceError, match=r"cannot write .*bank\.h5: No space left on device"):
        merge_shards([path], tmp_path / "bank.h5")
    assert [file.name for file in tmp_path.iterdir()] == ["s.h5"]


# -- what it costs -----------------------------------------------------------------------------------------------------

_MERGE = """
import sys
from pathlib import Path
from rose_hpc import merge_shards
merge_shards(sys.argv[2:], sys.argv[1], workers=2)
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def test_no_shard_is_held_in_memory(tmp_path: Path) -> None:
    """Merging shards of 120 MB each takes less than 100 MB, interpreter and NumPy included."""
    rows = np.zeros((30_000, 1000), np.float32)
    for name in ("a.h5", "b.h5"):
        with ShardWriter(tmp_path / name, fsync=False) as shard:
            shard.extend(observations=rows, terminations=np.zeros(30_000, bool))
    command = [sys.executable, "-c", _MERGE, str(tmp_path / "bank.h5"), str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]
    peak_kb = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak_kb < 100_000


def test_what_goes_to_the_disk_is_given_to_it_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fsync, the system is told of every whole stretch that was written; without, of none."""
    monkeypatch.setattr(copying, "_SYNCED", 512)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(copying, "start_writing", lambda fd, offset, size: told.append((offset, size)))
    monkeypatch.setattr(copying.SpanWriter, "block", 128)
    path = write(tmp_path / "s.h5", 400)
    merge_shards([path], tmp_path / "bank.h5")
    assert told == []
    bank = merge_shards([path], tmp_path / "bank.h5", fsync=True)
    observations = bank.columns["observations"]
    inside = [at for at in range(0, bank.bytes, 512) if observations.offset <= at < observations.offset + 4800 - 512]
    assert set(inside) <= {offset for offset, size in told if size == 512}
