"""Shards that cannot be merged: one line names shard and difference, and everything stays as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from rose_hpc import cli
from rose_hpc.errors import ExperienceError
from rose_hpc.experience import format as format_module
from rose_hpc.experience import header
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.shard import ShardWriter

ROWS = {"observations": np.ones((5, 3), np.float32), "rewards": np.ones(5)}


def write(path: Path, attributes: dict[str, object] | None = None, **changes: np.ndarray | None) -> Path:
    """A shard with these changes to its columns; None leaves one out."""
    columns = {name: value for name, value in {**ROWS, **changes}.items() if value is not None}
    with ShardWriter(path, fsync=False, attributes=attributes) as shard:
        shard.extend(**columns)
    return path


def cut(path: Path, good: Path, size: int) -> None:
    """The first so many bytes of a good one; from the end when negative."""
    path.write_bytes(good.read_bytes()[:size])


def flip(path: Path, good: Path, at: int) -> None:
    """A good one but for a bit."""
    data = bytearray(good.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def of_next_version(path: Path) -> None:
    """As a later rose_hpc will write it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header, "VERSION", header.VERSION + 1)
        patch.setattr(format_module, "VERSION", header.VERSION)
        write(path)


def unsealed(path: Path) -> None:
    """As another program writes it."""
    with h5py.File(path, "w") as file:
        for name, column in ROWS.items():
            file[name] = column


#: makes the odd one, beside a good one -> what the line says, besides its name
ODD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "column": (lambda odd, good: write(odd, extra=np.ones(5)), "has an unexpected column 'extra'; all shards of"),
    "no column": (lambda odd, good: write(odd, observations=None), "has no column 'observations'; all shards of"),
    "dtype": (lambda odd, good: write(odd, rewards=np.ones(5, np.float32)), "has 'rewards' as float32 instead of"),
    "shape": (
        lambda odd, good: write(odd, observations=np.ones((5, 4), np.float32)),
        "has 'observations' as float32(4,) instead of float32(3,)",
    ),
    "run": (lambda odd, good: write(odd, {"run": "q"}), "good.h5 is of run 'r', {odd} of 'q'"),
    "iteration": (lambda odd, good: write(odd, {"run": "r", "iteration": 2}), "is of iteration 1, {odd} of 2"),
    "link": (lambda odd, good: odd.symlink_to(good), "is given twice"),
    "copy": (lambda odd, good: shutil.copy(good, odd), "and {folder}/good.h5 are both of environment 'e'"),
    "version": (
        lambda odd, good: of_next_version(odd),
        f"has format version {header.VERSION + 1}; this rose_hpc reads",
    ),
    "unsealed": (lambda odd, good: unsealed(odd), "is not a shard or bank; if another program wrote it, seal it"),
    "empty": (lambda odd, good: odd.write_bytes(b""), "is empty; write it again"),
    "missing": (lambda odd, good: None, "does not exist"),
    "folder": (lambda odd, good: odd.mkdir(), "is not a file"),
    "pipe": (lambda odd, good: os.mkfifo(odd), "is not a file"),
    "text": (lambda odd, good: odd.write_text("a text, and no short one"), "is not an HDF5 file; shards and banks are"),
    "half": (lambda odd, good: cut(odd, good, 1500), "is damaged: "),
    "cut": (lambda odd, good: cut(odd, good, -1), "is damaged: it was altered after it was sealed"),
    "header": (lambda odd, good: flip(odd, good, 100), "is damaged: what it says of itself was altered"),
}


@pytest.mark.parametrize("case", ODD)
def test_one_line_names_shard_and_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    """From the library and the command line: the odd one is named, and no file is changed or made."""
    good = write(tmp_path / "good.h5", {"run": "r", "iteration": 1, "environment": "e"})
    odd, text = tmp_path / "odd.h5", ODD[case][1].format(odd=tmp_path / "odd.h5", folder=tmp_path)
    ODD[case][0](odd, good)
    before = [(path.name, path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(tmp_path.iterdir())]
    with pytest.raises(ExperienceError) as caught:
        merge_shards([good, odd], tmp_path / "bank.h5")
    with pytest.raises(SystemExit) as exit_:
        cli.main(["merge", str(good), str(odd), "--output", str(tmp_path / "bank.h5")])
    line = capsys.readouterr().err
    assert exit_.value.code == 1
    assert line.count("\n") == 1
    for said in (str(caught.value), line):
        assert str(odd) in said
        assert text in said, said
        assert "\n" not in said.rstrip("\n")
    after = [(path.name, path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(tmp_path.iterdir())]
    assert after == before


def test_shards_without_rows_are_no_reason_to_refuse(tmp_path: Path) -> None:
    """An environment that wrote no row contributes its name; with nothing but such, the bank is empty."""
    paths = [write(tmp_path / f"{n}.h5", observations=np.ones((0, 3), np.float32), rewards=np.ones(0)) for n in "ab"]
    bank = merge_shards(paths, tmp_path / "bank.h5")
    assert (bank.rows, bank.shard_names, list(bank.columns)) == (0, ("a", "b"), ["observations", "rewards"])
