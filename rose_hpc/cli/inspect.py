"""``rose-hpc inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rose_hpc.cli import options
from rose_hpc.errors import UsageError

if TYPE_CHECKING:
    from rose_hpc.experience.schema import Column, ShardInfo


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@options.as_json
def command(file: Path, as_json: bool) -> None:
    """Show what a shard or bank holds: columns, rows, statistics, whose rows they are. FILE may be a run: its banks.

    \b
    Example: rose-hpc inspect runs/cartpole-7f3a/iter-0003/bank.h5
    """
    from rose_hpc.experience.format import read_info

    infos = [read_info(path) for path in _files(file)]
    if as_json:
        facts = [info.to_json() for info in infos]
        options.print_json(facts if file.is_dir() else facts[0])
    else:
        click.echo("\n\n".join(describe(info) for info in infos))


def _files(path: Path) -> list[Path]:
    """The file itself, or what a run holds now."""
    if not path.is_dir():
        return [path]
    found = sorted([*path.glob("iter-*/bank.h5"), *path.glob("iter-*/shards/*.h5")])
    if not found:
        raise UsageError(
            f"{path} holds no bank and no shard", hint="retention may have dropped them; see `rose-hpc status`"
        )
    return found


def describe(info: ShardInfo) -> str:
    """A shard or bank for people."""
    lines = [f"{info.path}: a {info.kind} of {info.rows:,} rows, {info.data_bytes / 1e6:,.2f} MB"]
    lines += [f"  {name}: {value}" for name, value in info.attributes.items()]
    if info.digest:
        lines.append(f"  digest: {info.digest}")
    header = ("column", "dtype", "row shape", "mean", "std", "min", "max", "NaN")
    rows = [header, *(_column(name, column) for name, column in info.columns.items())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines += ["", *("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
    if info.kind == "bank":
        lines += ["", "  rows of each shard, in order"]
        ends = zip(info.shard_names, info.shard_offsets, info.shard_offsets[1:], strict=False)
        shown = list(ends)
        lines += [f"  {name}: {start:,} to {end:,} ({end - start:,})" for name, start, end in shown[:40]]
        if len(shown) > 40:
            lines.append(f"  ... and {len(shown) - 40} more")
    return "\n".join(lines)


def _column(name: str, column: Column) -> tuple[str, ...]:
    shape = "x".join(map(str, column.shape)) or "-"
    if column.stats is None:
        return (name, column.dtype, shape, "-", "-", "-", "-", "-")
    s = column.stats
    nans = int(s.nans.sum())
    return (
        name,
        column.dtype,
        shape,
        *(_few(value) for value in (s.mean, s.std, s.min, s.max)),
        f"{nans:,}" if nans else "-",
    )


def _few(values: Any) -> str:
    """One number, up to four, or the range of many."""
    flat = values.ravel()
    if flat.size <= 4:
        return " ".join(f"{value:.4g}" for value in flat)
    return f"{flat.min():.4g} .. {flat.max():.4g}"
