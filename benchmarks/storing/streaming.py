"""From the last shard to the bank: streamed, and in one go. What is done before the last shard makes nobody wait."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.stream import Stream
from storing.data import shards_of
from storing.table import Table, seconds


def from_the_last_shard(folder: Path, table: Table, sizes: Sequence[float], counts: Sequence[int], rounds: int) -> None:
    """A row for each size of all shards together, and each number of them."""
    table.title("from the last shard to the bank, verified, with fsync: streamed")
    for size in sizes:
        for count in counts:
            with shards_of(folder, size, count) as paths:
                taken = [(_at_once(paths, folder / "bank.h5"), _last(paths, folder / "bank.h5")) for _ in range(rounds)]
            once, streamed = (min(times) for times in zip(*taken, strict=True))
            table.faster(f"{size / 1e6:g} MB in {count} shards", streamed, once, "a merge at once", None)


def _at_once(paths: Sequence[Path], bank: Path) -> float:
    took = seconds(lambda: merge_shards(paths, bank, fsync=True))
    bank.unlink()
    return took


def _last(paths: Sequence[Path], bank: Path) -> float:
    """Seconds for the last one, when all others have been copied, one by one."""
    infos = [read_info(path) for path in paths]
    stream = Stream(bank, verify=True, fsync=True)
    for number, info in enumerate(infos[:-1]):
        stream.copy([each.rows for each in infos], {number: info})
    took = seconds(lambda: stream.finish([read_info(path) for path in paths], {}, workers=2))
    bank.unlink()
    shutil.rmtree(f"{bank}.parts")
    return took
