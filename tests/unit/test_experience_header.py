"""Headers and footers: every byte counts, nothing in them is believed, and others can read them."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from rose_hpc.errors import DamagedError, ExperienceError, FormatError
from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.check import verify
from rose_hpc.experience.format import examine, survey, write_info
from rose_hpc.experience.hdf5 import reading
from rose_hpc.experience.header import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.schema import ShardInfo
from rose_hpc.experience.shard import ShardWriter, seal

FOOTER = struct.Struct("<4Q8s16s")


def shard(path: Path, rows: int = 7, **more: Any) -> Path:
    """A small shard with attributes."""
    known = {"run": "r", "iteration": 2, "environment": path.stem, "seed": 5, "parameters": {"epsilon": 0.1}}
    with ShardWriter(path, fsync=False, attributes=known | more) as writer:
        writer.extend(
            observations=np.arange(rows * 3, dtype=np.float32).reshape(rows, 3),
            rewards=np.arange(float(rows)),
            terminations=np.arange(rows) % 3 == 2,
        )
    return path


def resign(path: Path, change: Callable[[dict[str, Any]], object], target: Path | None = None) -> Path:
    """Change the header and give the file the footer that it should have then, as a forger would."""
    data = path.read_bytes()
    at, size, stats_at, stats_size, magic, _ = FOOTER.unpack(data[-FOOTER.size :])
    header = json.loads(data[at : at + size])
    columns = [(c["offset"], c["offset"] + header["rows"] * _row_bytes(c)) for c in header["columns"].values()]
    change(header)
    text = json.dumps(header).encode()
    body = bytearray(data[: -FOOTER.size])
    body += text
    footer = FOOTER.pack(len(body) - len(text), len(text), stats_at, stats_size, magic, b"")[:-16]
    for start, stop in columns:
        body[start:stop] = b"\0" * (stop - start)
    kept = b"".join(bytes(body[a:b]) for a, b in _gaps(columns, len(body)))
    target = target or path
    target.write_bytes(data[: -FOOTER.size] + text + footer + xxhash.xxh3_128(kept + footer).digest())
    return target


def _row_bytes(column: dict[str, Any]) -> int:
    return int(np.dtype(column["dtype"]).itemsize * np.prod(column["shape"], dtype=int))


def _gaps(columns: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    edges = [0, *(edge for column in sorted(columns) for edge in column), end]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("kind", ["shard", "bank"])
def test_every_flipped_byte_is_found(tmp_path: Path, kind: str) -> None:
    """A flipped bit outside the columns is found when the file is opened, one within them by their digests."""
    path = shard(tmp_path / "a.h5")
    if kind == "bank":
        merge_shards([path, shard(tmp_path / "b.h5")], path := tmp_path / "bank.h5")
    whole, info = path.read_bytes(), read_info(path)
    inside = {at for c in info.columns.values() for at in range(c.offset, c.offset + info.rows * c.row_bytes)}
    rng = random.Random(0)
    for at in range(rng.randrange(5), len(whole), 1 if kind == "shard" else 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        if at in inside:
            assert read_info(path) == info
            with pytest.raises(DamagedError, match="is not what was written"):
                verify(info)
        else:
            with pytest.raises((DamagedError, FormatError), match=str(path)):
                read_info(path)


def test_every_cut_and_every_addition_is_found(tmp_path: Path) -> None:
    """A sealed file that lost its end, or got one, is refused."""
    path = shard(tmp_path / "a.h5")
    whole = path.read_bytes()
    for length in (*range(0, len(whole) - 100, 17), *range(len(whole) - 100, len(whole))):
        path.write_bytes(whole[:length])
        with pytest.raises((DamagedError, FormatError), match=str(path)):
            read_info(path)
    for more in (b"\0", b"x" * 56, whole[-56:]):
        path.write_bytes(whole + more)
        with pytest.raises(DamagedError, match="altered"):
            read_info(path)


def test_a_sealed_file_changed_by_others_is_refused(tmp_path: Path) -> None:
    """Opened for writing by HDF5 and closed again, a sealed file is not what was sealed, and is not sealed anew."""
    path = shard(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["rewards"][0] = 100.0
    for function in (read_info, examine, seal):
        with pytest.raises(DamagedError, match="altered after it was sealed"):
            function(path)


def test_opening_needs_no_hdf5(tmp_path: Path) -> None:
    """A sealed bank is opened and sampled without loading h5py."""
    merge_shards([shard(tmp_path / "a.h5")], tmp_path / "bank.h5")
    code = "import sys; from rose_hpc import ExperienceBank; ExperienceBank.open(sys.argv[1]).sample(3)"
    subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit('h5py' in sys.modules)", tmp_path / "bank.h5"], check=True, timeout=60
    )


def _set(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """A change: all but the last of ``keys`` lead to what becomes the last."""

    def change(header: dict[str, Any]) -> None:
        target: Any = header
        for key in keys[:-2]:
            target = target[key]
        target[keys[-2]] = keys[-1]

    return change


FORGED: list[tuple[Any, type[ExperienceError], str]] = [
    (("version", 3), FormatError, "format version 3"),
    (("format", "another"), FormatError, "format version"),
    (("kind", "x"), DamagedError, "does not parse"),
    (("rows", -1), DamagedError, "does not parse"),
    (("rows", 8), DamagedError, "altered"),
    (("rows", 10**12), DamagedError, "altered"),
    (("rows", 10**30), DamagedError, "does not parse"),
    (("rows", True), DamagedError, "does not parse"),
    (("columns", []), DamagedError, "does not parse"),
    (
        ("columns", "a/b", {"dtype": "bool", "shape": [], "offset": 0, "digest": None, "statistics": None}),
        DamagedError,
        "cannot be named",
    ),
    (("columns", "rewards", "dtype", "object"), DamagedError, "does not parse"),
    (("columns", "rewards", "dtype", ["float32"]), DamagedError, "does not parse"),
    (("columns", "rewards", "dtype", "int64"), DamagedError, "is int64, not floating"),
    (("columns", "terminations", "dtype", "uint8"), DamagedError, "is uint8, not bool"),
    (("columns", "rewards", "shape", [0]), DamagedError, "does not parse"),
    (("columns", "rewards", "shape", [2**62]), DamagedError, "altered"),
    (("columns", "rewards", "shape", 3), DamagedError, "does not parse"),
    (("columns", "rewards", "offset", -8), DamagedError, "does not parse"),
    (("columns", "rewards", "offset", 2**62), DamagedError, "altered"),
    (("columns", "rewards", "offset", 1.5), DamagedError, "does not parse"),
    (("columns", "rewards", "digest", "x"), DamagedError, "does not parse"),
    (("columns", "rewards", "digest", 1), DamagedError, "does not parse"),
    (("columns", "rewards", "statistics", 1000), DamagedError, "does not parse"),
    (("columns", "rewards", "statistics", -1), DamagedError, "does not parse"),
    (("attributes", "run", [1]), DamagedError, "does not parse"),
    (("attributes", "parameters", [1]), DamagedError, "does not parse"),
]


@pytest.mark.parametrize(("change", "error", "text"), FORGED)
def test_forged_headers_are_not_believed(
    tmp_path: Path, change: tuple[Any, ...], error: type[ExperienceError], text: str
) -> None:
    """A header with the checksum it should have is held against the format nevertheless."""
    path = shard(tmp_path / "a.h5")
    expected = read_info(path)
    resign(path, lambda header: None)
    assert replace(read_info(path), bytes=expected.bytes) == expected  # the forger knows how
    resign(path, _set(*change))
    with pytest.raises(error, match=text):
        read_info(path)


@pytest.mark.parametrize(
    "change",
    [
        _set("shard_offsets", [0, 7, 13]),
        _set("shard_offsets", [0, 14, 14, 14]),
        _set("shard_offsets", [0, -1, 14]),
        _set("shard_offsets", [0.0, 7, 14]),
        _set("shard_offsets", []),
        _set("shard_names", ["a", 1]),
        _set("shard_names", ["a"]),
        _set("episodes", "x"),
        lambda header: header.pop("shard_names"),
    ],
)
def test_forged_banks_are_not_believed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Offsets and names that do not fit each other or the rows are damage."""
    merge_shards([shard(tmp_path / "a.h5"), shard(tmp_path / "b.h5")], tmp_path / "bank.h5")
    resign(tmp_path / "bank.h5", change)
    with pytest.raises(DamagedError):
        read_info(tmp_path / "bank.h5")


def test_no_forged_header_is_more_than_an_error(tmp_path: Path) -> None:
    """Whatever stands in a header with a valid checksum, opening it is a result or an error of ours."""
    path, rng = shard(tmp_path / "a.h5"), random.Random(0)
    values = [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 1e300, "", "x", ">f4", [], [[]], {}, {"a": 1}, float("nan")]
    opened, lines = 0, set()
    for _ in range(1500):

        def change(header: dict[str, Any]) -> None:
            target: Any = header
            while isinstance(key := rng.choice(list(target)), str):
                if not isinstance(target[key], dict) or not target[key] or rng.random() < 0.1:
                    break
                target = target[key]
            target[key] = rng.choice(values)

        forged = resign(path, change, tmp_path / "forged.h5")
        try:
            with ExperienceBank([read_info(forged)]) as bank:
                opened += 1
                if len(bank):
                    bank.sample(2, rng=0)
                for name in bank.columns:
                    bank.stats(name)
        except ExperienceError as error:
            lines.add(str(error))
    assert opened > 10
    assert not [line for line in lines if "\n" in line]


def test_what_is_behind_a_signed_header_is_examined(tmp_path: Path) -> None:
    """A link beside sealed columns is never followed by us; examining refuses it, by name, for those who would."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["rewards"] = np.arange(3.0)
    with reading(path) as file:
        found = survey(file, path)
    with h5py.File(path, "r+") as file:
        file["observations"] = h5py.ExternalLink("secret.h5", "/secret")
    write_info(path, ShardInfo(path, "shard", 3, 0, found.columns, {}, (0, 3)))
    assert list(read_info(path).columns) == ["rewards"]
    with pytest.raises(FormatError, match="'observations' is a link"):
        examine(path)


@pytest.mark.parametrize(
    "change",
    [
        _set("columns", "observations", "shape", [1]),
        _set("columns", "observations", "offset", 0),
        _set("columns", "rewards", "dtype", ">f8"),
        _set("attributes", "seed", 6),
        lambda header: header["columns"].pop("rewards"),
    ],
)
def test_a_header_of_another_content_is_examined(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A header that says other things than HDF5's own structures do is found by examining."""
    path = shard(tmp_path / "a.h5")
    assert examine(path) == read_info(path)
    resign(path, change)
    with pytest.raises(DamagedError):
        examine(path)


@pytest.mark.parametrize("width", [10, 4096])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_statistics_of_any_size_are_kept(tmp_path: Path, width: int, libver: str) -> None:
    """Statistics beyond HDF5's 64 KiB for an attribute are kept, of shards and of sealed files in any file format."""
    rows = np.random.default_rng(0).random((5, width))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["observations"], file["actions"] = rows, rows
        file.attrs["note"] = "n" * 50_000
    with ShardWriter(tmp_path / "b.h5", fsync=False, attributes={"note": "n" * 50_000}) as writer:
        writer.extend(observations=rows, actions=rows)
    sealed, ours = seal(path, fsync=False), read_info(tmp_path / "b.h5")
    for info in (sealed, ours, examine(path), examine(tmp_path / "b.h5")):
        assert info.columns["actions"].stats.mean.tolist() == pytest.approx(rows.mean(axis=0).tolist())  # type: ignore[union-attr]
        assert info.attributes == {"note": "n" * 50_000}
    with h5py.File(path, "r") as file:
        assert file.attrs["statistics"].size == 2 * 6 * width


def test_many_columns_and_shards_are_kept(tmp_path: Path) -> None:
    """A header of thousands of columns, and a bank of as many shards, are read back."""
    with ShardWriter(tmp_path / "wide.h5", fsync=False) as writer:
        writer.extend(**{f"column {number}": np.zeros(2) for number in range(3000)})
    assert len(read_info(tmp_path / "wide.h5").columns) == 3000
    with ShardWriter(tmp_path / "a.h5", fsync=False) as writer:
        writer.extend(rewards=np.zeros(1))
    info = read_info(tmp_path / "a.h5")
    names = tuple(f"environment_{number}" for number in range(5000))
    offsets = (*([0] * 5000), 1)
    write_info(info.path, replace(info, kind="bank", shard_names=names, shard_offsets=offsets))
    assert examine(info.path).shard_names == names


@pytest.mark.skipif(not Path("/usr/lib/python3/dist-packages/h5py").is_dir(), reason="needs Debian's python3-h5py")
def test_hdf5_1_10_reads_what_is_written(tmp_path: Path) -> None:
    """The HDF5 of Debian 12 finds columns, plain attributes and header in shards and banks."""
    merge_shards([shard(tmp_path / "a.h5"), shard(tmp_path / "b.h5")], tmp_path / "bank.h5")
    code = """
import json, sys, h5py
assert h5py.version.hdf5_version.startswith("1.1"), h5py.version.hdf5_version
for path in sys.argv[1:]:
    with h5py.File(path, "r") as file:
        header = json.loads(file.attrs["header"])
        assert list(header["columns"]) == ["observations", "rewards", "terminations"]
        assert file["rewards"][:7].tolist() == list(range(7))
        assert (file.attrs["rows"], file.attrs["run"].decode()) == (header["rows"], "r")
        at = header["columns"]["rewards"]["statistics"]
        assert file.attrs["statistics"][at + 4] == 6.0
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = ["/usr/bin/python3", "-c", code, tmp_path / "a.h5", tmp_path / "bank.h5"]
    subprocess.run(command, check=True, timeout=60, env=environment)
