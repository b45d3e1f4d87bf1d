"""Shards of random rows, and the bank that they must become."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from rose_hpc.experience.shard import ShardWriter


def write(path: Path, rows: int, *, seed: int = 0, width: int = 3) -> Path:
    """A shard whose rows follow from the seed, with episodes of seven steps."""
    rng = np.random.default_rng(seed)
    with ShardWriter(path, fsync=False) as shard:
        shard.extend(
            observations=rng.random((rows, width), np.float32),
            actions=rng.integers(0, 5, rows, np.int16),
            rewards=rng.random(rows),
            terminations=np.arange(rows) % 7 == 6,
        )
    return path


def write_all(folder: Path, lengths: list[int], *, width: int = 3) -> list[Path]:
    """A shard for each length."""
    return [write(folder / f"env_{n}.h5", rows, seed=n, width=width) for n, rows in enumerate(lengths)]


def columns_of(path: Path) -> dict[str, np.ndarray]:
    """All columns of a file."""
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in file}


def concatenated_digest(paths: list[Path], whole: Path) -> str | None:
    """The digest of what plain NumPy makes of these shards, one after another, written as one shard."""
    parts = [columns_of(path) for path in paths]
    with ShardWriter(whole, fsync=False) as shard:
        shard.extend(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    from rose_hpc.experience.format import read_info

    return read_info(whole).digest
