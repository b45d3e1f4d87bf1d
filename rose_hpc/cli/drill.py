"""``rose-hpc drill``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rose_hpc import rundir
from rose_hpc.cli import options
from rose_hpc.errors import UsageError
from rose_hpc.report.words import count

if TYPE_CHECKING:
    from rose_hpc.drill import Report


@click.command("drill")
@options.config
@click.option("--iterations", type=click.IntRange(min=1), default=6, show_default=True, help="Of each run.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where its runs are kept; else they go.")
@click.option("--timeout-min", type=click.FloatRange(min=0.1), default=60, show_default=True, help="For each driver.")
@options.sets
@options.engine
@options.as_json
@click.pass_context
def command(
    ctx: click.Context,
    config: Path,
    iterations: int,
    run_dir: Path | None,
    timeout_min: float,
    sets: tuple[str, ...],
    engine: str,
    as_json: bool,
) -> None:
    """Kill a short training of CONFIG in every way, and see that nothing is lost (exit 0; else 1).

    It runs where you are: on this machine, or inside a Slurm job on the pilot. Make the training short with --set.

    \b
    Example: rose-hpc drill configs/cartpole.toml --set environments.timeout_s=60
    """
    from rose_hpc.drill import Drill
    from rose_hpc.execution.select import choose_engine

    words = (*(word for each in sets for word in ("--set", each)), *_never_enough(config, sets), "--engine", engine)
    words = (*words, "--max-iterations", str(iterations))
    folder = _folder(run_dir)
    drill = Drill(config, folder, iterations, words, timeout_min * 60, lambda line: click.echo(line, err=as_json))
    report = drill.run(choose_engine(engine))
    if report.ok and run_dir is None:
        shutil.rmtree(folder)
    if as_json:
        options.print_json(report.to_json())
    else:
        _tell(report)
    ctx.exit(0 if report.ok else 1)


def _never_enough(config: Path, sets: tuple[str, ...]) -> tuple[str, ...]:
    """What keeps the training from converging before it has been struck."""
    from rose_hpc.config import check_scripts, load_config

    loaded = load_config(config, sets=sets)
    check_scripts(loaded, config)
    if loaded.check is None:
        return ()
    threshold = "-1e308" if loaded.check.operator.startswith("<") else "1e308"
    return "--set", f"check.threshold={threshold}", "--set", f"seed={loaded.seed or 0}"


def _folder(run_dir: Path | None) -> Path:
    """The folder for the runs: the one that was asked for, or a new one."""
    if run_dir is None:
        runs = rundir.runs_folder()
        runs.mkdir(parents=True, exist_ok=True)
        return rundir.check_path(Path(tempfile.mkdtemp(prefix=".drill-", dir=runs)))
    folder = rundir.check_path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="choose another --run-dir")
    return folder


def _tell(report: Report) -> None:
    for line in report.nondeterministic[:5]:
        click.echo(f"not deterministic: {line} between two undisturbed runs")
    if report.nondeterministic:
        click.echo(
            "the scripts do not give the same twice (do they take ROSE_HPC_SEED, and sum in a fixed order?), "
            "so the disturbed run was not compared with them"
        )
    for line in report.lost:
        click.echo(f"lost: {line}")
    verdict = "nothing was lost" if report.ok else f"not all is well; see {report.folder}"
    click.echo(f"{count(len(report.happened), 'blow')} in {count(report.iterations, 'iteration')}: {verdict}")
