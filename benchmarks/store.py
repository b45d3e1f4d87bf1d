"""The experience store beside its rivals: merging, planning, sampling, writing. One run, one table, ratios.

python benchmarks/store.py [--quick] [--gb 1] [--shards 4,64,1024] [--rose DIR] [--no-sb3] [--plot FILE]

Rivals take turns with ours, and the least time of each counts: read the ratios. They are `cat`, h5py (also MPI-IO,
where Debian's python3-h5py-mpi and mpiexec are), NumPy, Stable-Baselines3 (installed into .venv-sb3 once), and with
--rose a checkout of https://github.com/radical-cybertools/ROSE. A part alone: --only merging. Needs three times --gb of
disk, and 6 GB for sampling.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from storing.curves import curves
from storing.merging import beside_cat, beside_others, by_bytes, memory
from storing.planning import by_shards, plan_rows
from storing.sampling import sample_rows, sb3_python
from storing.streaming import from_the_last_shard
from storing.table import Table
from storing.writing import append_rows, extend_rows

PARTS = ("merging", "streaming", "others", "memory", "planning", "sampling", "writing", "curves")


def measure(options: argparse.Namespace, folder: Path) -> Table:
    """Everything that was asked for."""
    table, size = Table(), options.gb * 1e9
    rounds = 3 if options.quick else 4
    table.head()
    wanted = set(options.only or PARTS)
    shards = {}
    if wanted & {"merging", "curves"}:
        shards = beside_cat(folder, table, size, options.shards, rounds)
    if "streaming" in wanted:
        from_the_last_shard(folder, table, [size / 64, size / 16, size / 4, size], [4, 16, 64], rounds)
    if "others" in wanted:
        beside_others(folder, table, min(size, 1e9), options.rose)
    if "memory" in wanted:
        memory(folder, table, (size / 4, size), max(options.shards))
    if "planning" in wanted:
        plan_rows(folder, table)
    if "sampling" in wanted:
        sb3 = None if options.no_sb3 else sb3_python(install=not options.quick)
        sample_rows(folder, table, 1_000_000 if options.quick else 10_000_000, sb3)
    if "writing" in wanted:
        append_rows(folder, table, options.rose, 200_000 if options.quick else 400_000)
        extend_rows(folder, table, 1e8 if options.quick else 2.5e8, rounds)
    if "curves" in wanted:
        sizes = by_bytes(folder, [size * part for part in (0.125, 0.25, 0.5, 1)], rounds)
        plans = by_shards(folder, (1000, 2500, 5000, 10_000))
        curves(table, options.plot, shards, size, sizes, plans)
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute: 0.25 GB, fewer rows, nothing installed")
    parser.add_argument("--gb", type=float, help="size of the shards to merge (default: 1)")
    parser.add_argument("--shards", type=lambda text: [int(part) for part in text.split(",")], help="numbers of them")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be given several times")
    parser.add_argument("--rose", type=Path, help="a checkout of ROSE")
    parser.add_argument("--no-sb3", action="store_true", help="leave Stable-Baselines3 out")
    parser.add_argument("--plot", type=Path, default=Path("store.png"), help="the picture of the curves")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    options.gb = options.gb or (0.25 if options.quick else 1.0)
    options.shards = options.shards or ([4, 64, 1024] if options.quick else [4, 16, 64, 256, 1024])
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        measure(options, Path(name)).end()


if __name__ == "__main__":
    main()
