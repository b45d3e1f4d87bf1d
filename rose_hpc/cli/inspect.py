"""``rose-hpc inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rose_hpc.cli import options
from rose_hpc.errors import UsageError
from rose_hpc.rundir import RunDir

if TYPE_CHECKING:
    from rose_hpc.experience.schema import Column, ShardInfo
    from rose_hpc.experience.summary import Part

#: environments that are shown by name
_SHOWN = 40


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--check", is_flag=True, help="Compare every byte with its digest, and a run's files with its journal.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw return per episode and environment (.png, .svg).")
@options.as_json
@click.pass_context
def command(ctx: click.Context, file: Path | None, check: bool, plot: Path | None, as_json: bool) -> None:
    """Show what FILE holds: columns, statistics, whose rows they are, episodes and their returns.

    FILE is a shard or a bank, or a run: what it holds now. --check without FILE checks all runs in ./runs.
    Files are parsed in a process of their own, with limits: it is safe on files nobody trusts.

    \b
    Example: rose-hpc inspect runs/cartpole-7f3a/iter-0003/bank.h5 --plot returns.png
    """
    if check:
        from rose_hpc.cli import inspect_check

        ctx.exit(inspect_check.run(file, as_json=as_json))
    if file is None:
        raise click.UsageError("name a file or a run (only --check can do without)", ctx)
    from rose_hpc.experience import foreign, summary

    infos = foreign.read_foreign(_files(file))
    if plot is not None:
        from rose_hpc.experience.plot import plot_returns

        plot_returns(infos, plot)
        click.echo(f"drew {plot}", err=as_json)
    parts = [summary.parts_of(info, summary.episodes_of(info)) for info in infos]
    if as_json:
        facts = [
            info.to_json() | {"environments": [part.to_json() for part in of]}
            for info, of in zip(infos, parts, strict=True)
        ]
        options.print_json(facts if file.is_dir() else facts[0])
    elif plot is None:
        click.echo("\n\n".join(describe(info, of) for info, of in zip(infos, parts, strict=True)))


def _files(path: Path) -> list[Path]:
    """The file itself, or what a run holds now."""
    if not path.is_dir():
        return [path]
    found = [
        file
        for each in _runs(path)
        for file in sorted([*each.glob("iter-*/bank.h5"), *each.glob("iter-*/shards/*.h5")])
    ]
    if not found:
        raise UsageError(
            f"{path} holds no bank and no shard", hint="retention may have dropped them; see `rose-hpc status`"
        )
    return found


def _runs(path: Path) -> list[Path]:
    """A run directory, and those of its learners."""
    return [path, *(each.path for each in RunDir(path).learners)]


def banks_of(path: Path) -> list[Path]:
    """A file itself, or the banks that a run holds now."""
    if not path.is_dir():
        return [path]
    if found := [bank for each in _runs(path) for bank in sorted(each.glob("iter-*/bank.h5"))]:
        return found
    raise UsageError(f"{path} holds no bank", hint="keep more of them with `[retention] banks`")


def describe(info: ShardInfo, parts: list[Part]) -> str:
    """A shard or bank for people."""
    lines = [f"{info.path}: a {info.kind} of {info.rows:,} rows, {info.data_bytes / 1e6:,.2f} MB"]
    lines += [f"  {name}: {value}" for name, value in info.attributes.items()]
    if info.digest:
        lines.append(f"  digest: {info.digest}")
    columns = [_column(name, column) for name, column in info.columns.items()]
    lines += ["", *_table(("column", "dtype", "row shape", "mean", "std", "min", "max", "NaN"), columns)]
    if parts and (info.kind == "bank" or parts[0].returns):
        header: tuple[str, ...] = ("environment", "rows", "from", "to", "reward", "std", "min", "max")
        header += ("episodes", "return", "std", "min", "max") if any(part.returns for part in parts) else ()
        lines += ["", *_table(header, [_part(part)[: len(header)] for part in parts[:_SHOWN]])]
        if len(parts) > _SHOWN:
            lines.append(f"  ... and {len(parts) - _SHOWN} more")
    return "\n".join(lines)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    table = [header, *rows]
    widths = [max(len(row[k]) for row in table) for k in range(len(header))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]


def _column(name: str, column: Column) -> tuple[str, ...]:
    shape = "x".join(map(str, column.shape)) or "-"
    if column.stats is None:
        return (name, column.dtype, shape, "-", "-", "-", "-", "-")
    s = column.stats
    nans = int(s.nans.sum())
    few = tuple(_few(value) for value in (s.mean, s.std, s.min, s.max))
    return (name, column.dtype, shape, *few, f"{nans:,}" if nans else "-")


def _part(part: Part) -> tuple[str, ...]:
    s, r = part.rewards, part.returns
    rewards = tuple(_few(value) for value in (s.mean, s.std, s.min, s.max)) if s else ("-",) * 4
    returns = tuple("-" if v is None else f"{v:.4g}" for v in (r.mean, r.std, r.min, r.max)) if r else ("-",) * 4
    episodes = f"{r.episodes:,}" if r else "-"
    return (part.name, f"{part.stop - part.start:,}", f"{part.start:,}", f"{part.stop:,}", *rewards, episodes, *returns)


def _few(values: Any) -> str:
    """One number, up to four, or the range of many."""
    flat = values.ravel()
    if flat.size <= 4:
        return " ".join(f"{value:.4g}" for value in flat)
    return f"{flat.min():.4g} .. {flat.max():.4g}"
