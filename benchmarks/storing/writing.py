"""Appending rows one by one, and writing arrays of a thousand, beside NumPy and ROSE."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from rose_hpc import ShardWriter
from storing.data import CARTPOLE, WIDE, row_bytes, transitions
from storing.table import Table, in_turns, seconds

ROWS = 1000


def append_rows(folder: Path, table: Table, rose: Path | None, rows: int = 400_000) -> None:
    """A row for transitions appended one by one, publishing included."""
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
        (folder / "append.h5").unlink()

    table.title("writing a shard")
    rate, rival, ratio = rows / min(seconds(run) for _ in range(3)), "", ""
    if rose is not None:
        script = Path(__file__).with_name("rival_rose.py")
        done = subprocess.run([sys.executable, script, "append", rose], capture_output=True, text=True, check=True)
        theirs = float(done.stdout.splitlines()[-1])
        rival, ratio = f"ROSE: {theirs:,.0f} rows/s", f"{rate / theirs:.1f}x"
    table.row("append, row by row, 4 floats", f"{rate:,.0f} rows/s", rival, ratio, ">= 200,000 rows/s", rate >= 2e5)


def extend_rows(folder: Path, table: Table, size: float, rounds: int) -> None:
    """Rows for arrays of 1,000 rows, to the disk, beside the same bytes by NumPy."""
    ours, theirs = folder / "extend.h5", folder / "tofile"
    for width in (CARTPOLE, WIDE):
        columns = transitions(ROWS, width)
        calls = max(1, round(size / ROWS / row_bytes(columns)))

        def extend() -> None:
            with ShardWriter(ours) as shard:
                for _ in range(calls):  # noqa: B023 - used at once
                    shard.extend(**columns)  # noqa: B023

        def tofile() -> None:
            with open(theirs, "wb") as file:
                for _ in range(calls):  # noqa: B023
                    for array in columns.values():  # noqa: B023
                        array.tofile(file)
                file.flush()
                os.fsync(file.fileno())

        def clean() -> None:
            ours.unlink(missing_ok=True)
            theirs.unlink(missing_ok=True)

        taken = in_turns({"ours": extend, "NumPy": tofile}, rounds, clean)
        clean()
        what = f"extend by {ROWS:,} rows, {width} floats, {calls * ROWS * row_bytes(columns) / 1e6:.0f} MB"
        table.faster(what, taken["ours"], taken["NumPy"], "tofile and fsync", 0.8)
