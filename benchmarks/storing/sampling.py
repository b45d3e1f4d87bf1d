"""Sampling from banks of ten million rows beside Stable-Baselines3's buffer in memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rose_hpc import ExperienceBank
from rose_hpc.experience.format import create, write_info
from rose_hpc.experience.schema import Column, ShardInfo
from storing.data import CARTPOLE, WIDE, transitions
from storing.table import Table, duration, seconds

VENV = Path(__file__).parents[2] / ".venv-sb3"
#: what the measured figures are of; the CPU's torch is enough, and others are a download of gigabytes
PACKAGES = ("torch==2.13.0", "stable-baselines3==2.9.2")
BATCH = 256
#: of 1,000 samples each, in turns; the first half warms caches up, theirs too
_ROUNDS = 16


def sample_rows(folder: Path, table: Table, rows: int, sb3: Path | None) -> None:
    """Rows for sample(256), of 4 and of 64 floats."""
    table.title(f"sample({BATCH}) from {rows:,} rows")
    for width in (CARTPOLE, WIDE):
        path = _bank(folder / "sample.h5", rows, width)
        with ExperienceBank.open(path) as bank, _rival(sb3, width) as rival:
            rng = np.random.default_rng(0)
            first = statistics.mean(seconds(lambda: bank.sample(BATCH, rng)) for _ in range(50))  # noqa: B023
            ours, theirs = [], []
            for _ in range(_ROUNDS):
                ours.append(statistics.median(seconds(lambda: bank.sample(BATCH, rng)) for _ in range(1000)))  # noqa: B023
                theirs += [_ask(rival)] if rival else []
            time = statistics.median(ours[_ROUNDS // 2 :])
            what = f"uniform, {width} floats"
            if not theirs:
                table.row(what, duration(time), "Stable-Baselines3 is not installed")
            else:
                other = statistics.median(theirs[_ROUNDS // 2 :])
                texts = (duration(time), f"Stable-Baselines3, 1 million: {duration(other)}", f"{time / other:.2f}x")
                table.row(what, *texts, "<= 0.6x its time", time / other <= 0.6)
            table.row(f"uniform, {width} floats: the first 50, each", duration(first))
        path.unlink()


def sb3_python(install: bool) -> Path | None:
    """The interpreter of an environment that has Stable-Baselines3, made if need be and allowed; None without one."""
    python = VENV / "bin" / "python"
    if python.exists() or not install:
        return python if python.exists() else None
    print(f"installing Stable-Baselines3 into {VENV} (once; --no-sb3 leaves it out)", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        for package in PACKAGES:  # torch first: the other would take any
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
    except subprocess.CalledProcessError as error:
        print(f"it cannot be installed: {error}")
        python.unlink(missing_ok=True)
        return None
    return python


@contextmanager
def _rival(python: Path | None, width: int) -> Iterator[subprocess.Popen[str] | None]:
    if python is None:
        yield None
        return
    command = [python, Path(__file__).with_name("rival_sb3.py"), str(width)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
        assert child.stdin is not None
        child.stdin.close()


def _ask(rival: subprocess.Popen[str]) -> float:
    assert rival.stdin is not None
    assert rival.stdout is not None
    print("once more", file=rival.stdin, flush=True)
    return float(rival.stdout.readline())


def _bank(path: Path, rows: int, width: int) -> Path:
    """A file of so many rows, on the disk; filled in place, so that it is written once."""
    block = transitions(100_000, width)
    columns = {name: Column(array.dtype.name, array.shape[1:]) for name, array in block.items()}
    columns = create(path, columns, rows)
    with open(path, "r+b") as file:
        for name, column in columns.items():
            file.seek(column.offset)
            for start in range(0, rows, 100_000):
                block[name][: rows - start].tofile(file)
    write_info(path, ShardInfo(path, "shard", rows, 0, columns, {}, (0, rows)))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return path
