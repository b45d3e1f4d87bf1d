"""Merging beside `cat`, h5py and ROSE; what it costs in memory; how it grows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py

from rose_hpc import merge_shards
from storing.data import WIDE, drop_caches, evict, is_evicted, row_bytes, shards_of, transitions
from storing.table import Table, in_turns

Ways = dict[str, Callable[[], Any]]
DEBIAN_PYTHON = Path("/usr/bin/python3")
#: prints the most memory that merging took; not ru_maxrss, which counts the parent's memory until exec, too
_PEAK = """
import sys
from pathlib import Path
from rose_hpc import merge_shards
merge_shards(sys.argv[2:], sys.argv[1])
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


def cat(shards: Sequence[Path], bank: Path, fsync: bool = False) -> None:
    """The limit of a copy."""
    with open(bank, "wb") as target:
        subprocess.run(["cat", *map(str, shards)], stdout=target, check=True)
        if fsync:
            os.fsync(target.fileno())


def h5py_slices(shards: Sequence[Path], bank: Path) -> None:
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


def mpio(shards: Sequence[Path], bank: Path, ranks: int = 2) -> float | None:
    """Seconds of collective writes by the MPI build of h5py, its start not counted; None where there is none."""
    script = Path(__file__).with_name("rival_mpio.py")
    if shutil.which("mpiexec") is None or not DEBIAN_PYTHON.exists():
        return None
    command = ["mpiexec", "--oversubscribe", "-n", str(ranks), DEBIAN_PYTHON, script, bank, *shards]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | allowed
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return float(done.stdout) if done.returncode == 0 else None


def beside_cat(
    folder: Path, table: Table, size: float, counts: Sequence[int], rounds: int
) -> dict[int, dict[str, float]]:
    """Rows for each number of shards, page cache warm and cold; returns the warm seconds."""
    found = {}
    for count in counts:
        with shards_of(folder, size, count) as shards:
            table.title(f"merging {size / 1e9:g} GB in {count:,} shards")
            warm = in_turns(_ways(shards, folder / "bank.h5"), rounds, lambda: _remove(folder / "bank.h5"))
            _rows(table, warm, count, "warm")
            found[count] = warm
            if not _forget(shards):
                table.row("cold: the system does not forget what it has read", "")
                continue
            cold = in_turns(
                _ways(shards, folder / "bank.h5"),
                max(2, rounds - 1),
                lambda: (_remove(folder / "bank.h5"), _forget(shards)),
            )
            _rows(table, cold, count, "cold")
        _remove(folder / "bank.h5")
    return found


def beside_others(folder: Path, table: Table, size: float, rose: Path | None) -> None:
    """Rows against h5py, MPI-IO, and ROSE's merge_banks."""
    bank = folder / "bank.h5"
    with shards_of(folder, size, 16) as shards:
        table.title(f"merging {size / 1e9:g} GB in 16 shards: others")
        ways: Ways = {"ours": lambda: merge_shards(shards, bank), "h5py": lambda: h5py_slices(shards, bank)}
        taken = in_turns(ways, 2, lambda: _remove(bank))
        table.faster("verified", taken["ours"], taken["h5py"], "h5py, slices", None)
        _remove(bank)
        for ranks in (2, 1):
            if (other := mpio(shards, bank, ranks)) is not None:
                table.faster("verified", taken["ours"], other, f"h5py mpio, {ranks} ranks", None)
            _remove(bank)
        rows = sum(path.stat().st_size for path in shards) / row_bytes(transitions(1, WIDE))
    if rose is not None:
        script = Path(__file__).with_name("rival_rose.py")
        done = subprocess.run([sys.executable, script, "merge", rose], capture_output=True, text=True, check=True)
        ours, theirs = rows / taken["ours"], float(done.stdout.splitlines()[-1])
        ratio, texts = ours / theirs, (f"{ours:,.0f}/s", f"ROSE's merge_banks: {theirs:,.0f}/s")
        table.row("transitions of 64 floats", *texts, f"{ratio:.0f}x", ">= 100x", ratio >= 100)


def memory(folder: Path, table: Table, sizes: Sequence[float], count: int) -> None:
    """The most memory that a process took which merges."""
    table.title("memory of a merge")
    for size in sizes:
        with shards_of(folder, size, count) as shards:
            command = [sys.executable, "-c", _PEAK, folder / "bank.h5", *shards]
            peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1000
            table.row(
                f"{size / 1e9:g} GB in {count:,} shards, verified", f"{peak:.0f} MB", "", "", "< 100 MB", peak < 100
            )
        _remove(folder / "bank.h5")


def by_bytes(folder: Path, sizes: Sequence[float], rounds: int) -> dict[float, dict[str, float]]:
    """Seconds of each way for 16 shards of so many bytes."""
    found = {}
    for size in sizes:
        with shards_of(folder, size, 16) as shards:
            found[size] = in_turns(_ways(shards, folder / "bank.h5"), rounds, lambda: _remove(folder / "bank.h5"))
        _remove(folder / "bank.h5")
    return found


def _ways(shards: Sequence[Path], bank: Path) -> Ways:
    return {
        "unverified": lambda: merge_shards(shards, bank, verify=False),
        "cat": lambda: cat(shards, bank),
        "verified": lambda: merge_shards(shards, bank),
        "fsync": lambda: merge_shards(shards, bank, fsync=True),
        "cat, fsync": lambda: cat(shards, bank, fsync=True),
    }


def _rows(table: Table, taken: dict[str, float], count: int, cache: str) -> None:
    table.faster(f"{count} shards, {cache}: span copy, unverified", taken["unverified"], taken["cat"], "cat", 1.0)
    table.faster(f"{count} shards, {cache}: span copy, verified", taken["verified"], taken["cat"], "cat", 1.0)
    table.faster(f"{count} shards, {cache}: verified, fsync", taken["fsync"], taken["cat, fsync"], "cat and fsync", 1.0)


def _forget(shards: Sequence[Path]) -> bool:
    evict(shards)
    if not is_evicted(shards) and os.geteuid() == 0:
        drop_caches()
    return is_evicted(shards)


def _remove(bank: Path) -> None:
    """So that the next way neither finds it nor waits until the disk has taken what others wrote."""
    bank.unlink(missing_ok=True)
    os.sync()
