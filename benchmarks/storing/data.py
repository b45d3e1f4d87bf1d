"""What is written, merged and sampled, and whether it is in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rose_hpc import ShardWriter

Columns = dict[str, np.ndarray]
CARTPOLE, WIDE = 4, 64


def transitions(rows: int, width: int = CARTPOLE) -> Columns:
    """Transitions with float32 observations: 50 bytes each with 4 (CartPole's), 530 with 64."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.random((rows, width), np.float32),
        "actions": rng.integers(0, 2, rows),
        "rewards": rng.random(rows),
        "next_observations": rng.random((rows, width), np.float32),
        "terminations": np.arange(rows) % 200 == 199,
        "truncations": np.zeros(rows, bool),
    }


def row_bytes(columns: Columns) -> int:
    """Bytes of one row."""
    return sum(array.nbytes // len(array) for array in columns.values())


@contextmanager
def shards_of(folder: Path, size: float, count: int, width: int = WIDE) -> Iterator[list[Path]]:
    """So many shards of ``size`` bytes in all, on the disk."""
    columns = transitions(10_000, width)
    rows = max(1, round(size / count / row_bytes(columns)))
    paths = [folder / f"env_{number}.h5" for number in range(count)]
    for path in paths:
        with ShardWriter(path, fsync=False) as shard:
            for start in range(0, rows, 10_000):
                shard.extend(**{name: array[: rows - start] for name, array in columns.items()})
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    yield paths
    for path in paths:
        path.unlink()


def evict(paths: Iterable[Path]) -> None:
    """Have the system forget the content of files that are on the disk."""
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_evicted(paths: Sequence[Path]) -> bool:
    """Whether nearly nothing of them is in memory, as mincore(2) says."""
    return all(_share_in_memory(path) < 0.05 for path in paths)


def _share_in_memory(path: Path) -> float:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        content = np.frombuffer(view, np.uint8)
        pages = np.zeros(-(-len(content) // mmap.PAGESIZE), np.uint8)
        address, answer = (ctypes.c_void_p(array.ctypes.data) for array in (content, pages))
        ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(content)), answer)
        del content  # the view cannot be closed while it is looked at
        return float((pages & 1).mean())


def drop_caches() -> None:
    """Have the system forget everything that is on the disk; root only."""
    Path("/proc/sys/vm/drop_caches").write_text("1\n")
