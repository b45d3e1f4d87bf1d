"""The data plane beside its rivals: appending, merging, sampling.

    python benchmarks/experience.py [--gb 1.0] [--rose DIR]

Rivals run in the same process, in turns with ours, because machines are noisy: read the ratios. Needs three times
--gb of disk.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rose_hpc import ExperienceBank, ShardWriter, merge_shards

Columns = dict[str, np.ndarray]


def cartpole(rows: int) -> Columns:
    """CartPole's transitions: 50 bytes each."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.random((rows, 4), np.float32),
        "actions": rng.integers(0, 2, rows),
        "rewards": np.ones(rows),
        "next_observations": rng.random((rows, 4), np.float32),
        "terminations": np.zeros(rows, bool),
        "truncations": np.zeros(rows, bool),
    }


def wide(rows: int) -> Columns:
    """Transitions with 64 float32 observations: 530 bytes each."""
    rng = np.random.default_rng(0)
    columns = cartpole(rows)
    for name in ("observations", "next_observations"):
        columns[name] = rng.random((rows, 64), np.float32)
    return columns


def seconds(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def line(what: str, figure: str, rival: str = "", goal: str = "", met: bool | None = None) -> None:
    """One line of the table."""
    verdict = "" if met is None else "met" if met else "MISSED"
    print(f"{what:<42}{figure:>22}  {rival:<40}{goal:<26}{verdict}")


# -- writing -----------------------------------------------------------------------------------------------------------


def append_rate(folder: Path, rows: int = 400_000) -> float:
    """Rows a second, appended one by one, publishing included."""
    observation, following = np.zeros(4, np.float32), np.ones(4, np.float32)

    def run() -> None:
        with ShardWriter(folder / "append.h5", fsync=False) as shard:
            for _ in range(rows):
                shard.append(
                    observation=observation,
                    action=1,
                    reward=1.0,
                    next_observation=following,
                    terminated=False,
                    truncated=False,
                )

    return rows / min(seconds(run) for _ in range(3))


def extend_rate(folder: Path, calls: int = 4000) -> float:
    """Rows a second, by arrays of 1,000, publishing included."""
    columns = cartpole(1000)

    def run() -> None:
        with ShardWriter(folder / "extend.h5", fsync=False) as shard:
            for _ in range(calls):
                shard.extend(**columns)

    return 1000 * calls / min(seconds(run) for _ in range(3))


def rose_rate(folder: Path, checkout: Path, rows: int = 100_000) -> float:
    """Rows a second of ROSE's bank, its pickle included."""
    spec = importlib.util.spec_from_file_location("rose_experience", checkout / "rose" / "rl" / "experience.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its pickles look for the class there
    spec.loader.exec_module(module)
    observation, following = np.zeros(4, np.float32), np.ones(4, np.float32)

    def run() -> None:
        bank = module.ExperienceBank()
        for _ in range(rows):
            bank.add(module.create_experience(observation.copy(), 1, 1.0, following.copy(), False))
        bank.save(str(folder), "rose.pkl")

    return rows / min(seconds(run) for _ in range(2))


def write_rates(folder: Path, rose: Path | None) -> None:
    """Appending and extending."""
    append, extend = append_rate(folder), extend_rate(folder)
    rival = ""
    if rose is not None:
        rate = rose_rate(folder, rose)
        rival = f"{append / rate:.1f}x ROSE's {rate:,.0f}"
    line("append, one CartPole row at a time", f"{append:,.0f} rows/s", rival, ">= 200,000 rows/s", append >= 2e5)
    line("extend, 1,000 CartPole rows at a time", f"{extend:,.0f} rows/s", "", ">= 5,000,000 rows/s", extend >= 5e6)


# -- merging -----------------------------------------------------------------------------------------------------------


def merge_by_h5py(shards: list[Path], bank: Path) -> None:
    """What one would write with h5py: a dataset per column, and slices assigned."""
    with h5py.File(bank, "w") as target:
        files = [h5py.File(shard, "r") for shard in shards]
        for name, first in files[0].items():
            rows = sum(len(file[name]) for file in files)
            column = target.create_dataset(name, (rows, *first.shape[1:]), first.dtype)
            at = 0
            for file in files:
                part = file[name][:]
                column[at : at + len(part)] = part
                at += len(part)
        for file in files:
            file.close()


def merge_by_cat(shards: list[Path], bank: Path) -> None:
    """The limit of a copy."""
    with open(bank, "wb") as target:
        subprocess.run(["cat", *map(str, shards)], stdout=target, check=True)


@contextmanager
def shards_of(folder: Path, gb: float, count: int = 16) -> Iterator[list[Path]]:
    """Shards of so many gigabytes in all."""
    columns = wide(10_000)
    portions = max(1, round(gb * 1e9 / count / sum(array.nbytes for array in columns.values())))
    paths = [folder / f"env_{number}.h5" for number in range(count)]
    for path in paths:
        with ShardWriter(path, fsync=False) as shard:
            for _ in range(portions):
                shard.extend(**columns)
    yield paths
    for path in paths:
        path.unlink()


def merge_times(folder: Path, gb: float, rounds: int = 5) -> None:
    """Ours, verified and not, beside cat and h5py; the median of rounds in turns."""
    bank = folder / "bank.h5"
    with shards_of(folder, gb) as shards:
        size = sum(shard.stat().st_size for shard in shards)
        ways: dict[str, Callable[[], Any]] = {
            "verified": lambda: merge_shards(shards, bank),
            "unverified": lambda: merge_shards(shards, bank, verify=False),
            "fsync": lambda: merge_shards(shards, bank, fsync=True),
            "cat": lambda: merge_by_cat(shards, bank),
            "h5py": lambda: merge_by_h5py(shards, bank),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                bank.unlink(missing_ok=True)
                taken[name].append(seconds(way))
        bank.unlink()
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, what in [("verified", "merge"), ("unverified", "merge, no verification"), ("fsync", "merge, fsync")]:
        t = medians[name]
        rival = f"{medians['h5py'] / t:.1f}x h5py, {medians['cat'] / t:.2f}x cat"
        goal = (">= 4x h5py", medians["h5py"] / t >= 4) if name == "verified" else ("", None)
        line(
            f"{what}, {len(shards)} shards, {size / 1e9:.2f} GB", f"{t:.3f} s, {size / t / 1e9:.2f} GB/s", rival, *goal
        )


# -- sampling ----------------------------------------------------------------------------------------------------------


def sample_times(folder: Path, rows: int, calls: int = 3000) -> None:
    """The time of sample(256), once the file's pages are mapped."""
    path = folder / "sample.h5"
    columns = cartpole(100_000)
    with ShardWriter(path, fsync=False) as shard:
        for _ in range(rows // 100_000):
            shard.extend(**columns)
    with ExperienceBank.open(path) as bank:
        rng = np.random.default_rng(0)
        times = [seconds(lambda: bank.sample(256, rng)) * 1e6 for _ in range(calls)]
    median, first = statistics.median(times[calls // 3 :]), statistics.mean(times[:50])
    goal = ("< 100 microseconds", median < 100)
    line(f"sample(256) of {rows:,} rows", f"{median:.0f} microseconds", f"the first 50: {first:.0f} each", *goal)
    path.unlink()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the shards to merge")
    parser.add_argument("--rose", type=Path, help="a checkout of ROSE, to append to its bank too")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_rates(folder, options.rose)
        merge_times(folder, options.gb)
        for rows in (100_000, 10_000_000):
            sample_times(folder, rows)


if __name__ == "__main__":
    main()
