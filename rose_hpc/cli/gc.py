"""``rose-hpc gc``."""

from __future__ import annotations

from pathlib import Path

import click

from rose_hpc import disk, rundir
from rose_hpc.cli import options


@click.command("gc")
@options.run
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@options.as_json
def command(run: Path, dry_run: bool, as_json: bool) -> None:
    """Remove what RUN need not keep, by its [retention], and what killed drivers have left unpublished.

    Drivers do the same as they go. Committed files go only when nothing needs them any more; logs, and shards that
    were set aside as damaged, stay.

    \b
    Example: rose-hpc gc runs/cartpole-7f3a --dry-run
    """
    from rose_hpc.garbage import collect, find
    from rose_hpc.ownership import owner_lives

    found = rundir.find_whole(run)
    garbage = find(found, driven=owner_lives(found)) if dry_run else collect(found)
    size = sum(each.bytes for each in garbage if not each.problem)
    if as_json:
        removed = [{"path": found.relative(e.path), "bytes": e.bytes, "problem": e.problem} for e in garbage]
        options.print_json({"run": str(found.path), "dry_run": dry_run, "bytes": size, "removed": removed})
        return
    for each in garbage:
        word = f"cannot remove ({each.problem})" if each.problem else "would remove" if dry_run else "removed"
        click.echo(f"{word} {found.relative(each.path)} ({disk.in_words(each.bytes)})")
    click.echo(f"{disk.in_words(size)} {'would be' if dry_run else 'are'} free" if garbage else "nothing to remove")
