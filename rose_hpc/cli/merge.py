"""``rose-hpc merge``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from rose_hpc.cli import options


@click.command("merge")
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bank to write.")
@click.option("--no-verify", is_flag=True, help="Do not compare the shards with their digests.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads that copy.")
@options.as_json
def command(shards: tuple[Path, ...], output: Path, no_verify: bool, workers: int | None, as_json: bool) -> None:
    """Merge SHARDS, in this order, into one bank. The shards stay as they are.

    They are parsed in a process of their own, with limits: it is safe on files nobody trusts.

    \b
    Example: rose-hpc merge shards/*.h5 --output bank.h5
    """
    from rose_hpc.experience.foreign import read_foreign
    from rose_hpc.experience.merge import merge_shards

    infos = read_foreign(shards)
    began = time.perf_counter()
    info = merge_shards(infos, output, verify=not no_verify, workers=workers)
    seconds = time.perf_counter() - began
    if as_json:
        facts = {
            "bank": str(output),
            "rows": info.rows,
            "bytes": info.bytes,
            "digest": info.digest,
            "shards": len(shards),
        }
        options.print_json({**facts, "seconds": round(seconds, 4)})
    else:
        speed = info.data_bytes / 1e6 / max(seconds, 1e-9)
        click.echo(f"{output}: {info.rows:,} rows of {len(shards)} shards in {seconds:.2f} s ({speed:,.0f} MB/s)")
