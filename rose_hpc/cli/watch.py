"""``rose-hpc watch``."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path

import click

from rose_hpc import rundir
from rose_hpc.cli import options
from rose_hpc.slurm.view import Verdict


@click.command("watch")
@options.run
@click.pass_context
def command(ctx: click.Context, run: Path) -> None:
    """Follow RUN until it ends, wherever it runs; exits as `run` would. Ctrl-C ends watching, not the run.

    Slurm is asked at most once a minute, and only while no driver lives.

    \b
    Example: rose-hpc watch runs/cartpole-7f3a
    """
    from rose_hpc.driver import EXIT_CODES
    from rose_hpc.journal import scan_journal

    found = rundir.find(run)
    verdict = _watch(found)
    if verdict.state in ("stopped", "failed"):
        for each in (found, *found.learners):  # who follows takes a damaged line for one that is being written
            deque(scan_journal(each.journal), maxlen=0)
    note = f" ({verdict.note})" if verdict.note else ""
    click.echo(f"{found.path} is {verdict.state}{note}", err=verdict.state not in ("converged", "max_iterations"))
    if verdict.state in ("stopped", "failed"):
        click.echo(f"go on with `{found.command('resume')}`", err=True)
    ctx.exit(EXIT_CODES[verdict.state])


def _watch(run: rundir.RunDir) -> Verdict:
    from rose_hpc.report.view import LiveView, PlainView
    from rose_hpc.slurm.watch import Watch

    if not sys.stdout.isatty():
        return Watch(run, PlainView(sys.stdout), click.echo).follow()
    from rich.console import Console

    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, emoji=False)

    with LiveView(console) as view:
        return Watch(run, view, say).follow()
