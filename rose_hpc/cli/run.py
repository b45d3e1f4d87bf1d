"""``rose-hpc run``."""

from __future__ import annotations

from pathlib import Path

import click

from rose_hpc.cli import options


@click.command("run")
@options.run_options
@options.engine
@click.pass_context
def command(
    ctx: click.Context,
    config: Path,
    run_dir: Path | None,
    seed: int | None,
    max_iterations: int | None,
    sets: tuple[str, ...],
    engine: str,
) -> None:
    """Run CONFIG here, until its reward converges (exit 0) or max_iterations are done (exit 3).

    \b
    Example: rose-hpc run configs/cartpole.toml --seed 1 --set check.threshold=150
    """
    from rose_hpc import driver
    from rose_hpc.config import check_scripts, load_config

    loaded = load_config(config, sets=sets, seed=seed, max_iterations=max_iterations)
    check_scripts(loaded, config)
    run = driver.make_run(loaded, run_dir, config)
    ctx.exit(driver.drive_shown(run, engine=engine))
