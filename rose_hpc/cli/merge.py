"""``rose-hpc merge``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rose_hpc.cli import options

if TYPE_CHECKING:
    from rose_hpc.experience.schema import ShardInfo


@click.command("merge")
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bank to write.")
@click.option("--no-verify", is_flag=True, help="Do not compare the shards with their digests.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads that copy.")
@click.option(
    "--way",
    type=click.Choice(["threads", "nodes", "mpio"]),
    default="threads",
    help="Who copies: threads, or, under mpiexec or srun, ranks on several nodes, through HDF5 (mpio) or not.",
)
@options.as_json
def command(
    shards: tuple[Path, ...], output: Path, no_verify: bool, workers: int | None, way: str, as_json: bool
) -> None:
    """Merge SHARDS, in this order, into one bank. The shards stay as they are.

    They are parsed in a process of their own, with limits: it is safe on files nobody trusts.

    \b
    Example: rose-hpc merge shards/*.h5 --output bank.h5
             srun --ntasks-per-node=2 rose-hpc merge shards/*.h5 --output bank.h5 --way nodes
    """
    if way != "threads":
        _in_ranks(shards, output, not no_verify, way, as_json)
        return
    from rose_hpc.experience.foreign import read_foreign
    from rose_hpc.experience.merge import merge_shards

    infos = read_foreign(shards)
    began = time.perf_counter()
    info = merge_shards(infos, output, verify=not no_verify, workers=workers)
    _say(info, len(shards), way, time.perf_counter() - began, as_json)


def _in_ranks(shards: tuple[Path, ...], output: Path, verify: bool, way: Any, as_json: bool) -> None:
    """All ranks come here; the first one speaks."""
    from rose_hpc.experience.mpio import merge_in_ranks  # first of all: it says which h5py is loaded
    from rose_hpc.experience.ranks import in_ranks

    def work() -> ShardInfo | None:
        from rose_hpc.experience.foreign import read_foreign

        return merge_in_ranks(shards, output, way=way, verify=verify, read=read_foreign)

    began = time.perf_counter()
    if (info := in_ranks(work)) is not None:
        _say(info, len(shards), way, time.perf_counter() - began, as_json)


def _say(info: ShardInfo, count: int, way: str, seconds: float, as_json: bool) -> None:
    if as_json:
        facts = {"bank": str(info.path), "rows": info.rows, "bytes": info.bytes, "digest": info.digest}
        options.print_json({**facts, "shards": count, "way": way, "seconds": round(seconds, 4)})
    else:
        speed = info.data_bytes / 1e6 / max(seconds, 1e-9)
        click.echo(f"{info.path}: {info.rows:,} rows of {count} shards in {seconds:.2f} s ({speed:,.0f} MB/s)")
