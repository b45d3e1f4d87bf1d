"""One self-contained page about a run, from its files alone: no network, no font, nothing to install."""

from __future__ import annotations

import base64
import hashlib
import statistics
import time
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from rose_hpc import __version__, publishing
from rose_hpc.errors import RoseHpcError, UsageError
from rose_hpc.report import population, tables
from rose_hpc.report.figures import Page, figures
from rose_hpc.report.history import read_history
from rose_hpc.report.timeline import read_timeline
from rose_hpc.report.words import clean, count, duration, moment, number
from rose_hpc.rundir import RunDir
from rose_hpc.slurm.queue import NOT_ASKED
from rose_hpc.standing import Sight, standing_of

#: of a longer configuration only the beginning is shown
_CONFIG_CHARACTERS = 100_000


def write_report(run: RunDir, output: Path | None = None) -> Path:
    """Write the report of a run.

    Args:
        run: the run, in whatever state.
        output: the file; ``report.html`` in the run if not given, and then in each of its learners, too.

    Returns:
        the file.

    Raises:
        UsageError: ``output`` is not named as a page, so it may be something else.
        RunError: the journal is damaged, or the file cannot be written.
    """
    target = (output or run.path / "report.html").absolute()
    if target.suffix.lower() not in (".html", ".htm") or target.is_dir():
        raise UsageError(f"{target} is not named *.html", hint="a report is a page: give --output FILE.html")
    sight = Sight.of(run, keep=True)
    pages = {target: render(sight, linked=output is None)}
    if output is None:
        pages |= {each.run.path / "report.html": render(each) for each in sight.learners}
    for path, page in pages.items():
        publishing.write_file(path, page.encode())
    return target


def render(sight: Sight, *, linked: bool = False) -> str:
    """The page of a run whose files were read.

    Args:
        sight: the run.
        linked: whether its learners have pages beside it.
    """
    config, config_note = _read_config(sight.run)
    facts = standing_of(sight, NOT_ASKED)
    several = "learners" in facts
    page = population.read_population(sight) if several else _page(sight, config)
    source = files("rose_hpc.report")
    style, script = (source.joinpath(name).read_text() for name in ("report.css", "report.js"))
    template = _environment().from_string(source.joinpath("report.html.jinja").read_text())
    return template.render(
        facts=facts,
        several=several,
        title=f"{facts['name']}: {facts['state']}",
        tiles=[*(population.tiles(facts) if several else ()), *_tiles(facts, page)],
        figures=figures(page),
        tables=tables.all_tables(page, population.rows(facts) if several else ()),
        links=[(f"{each.run.name}/report.html", f"learner {each.run.number}") for each in sight.learners * linked],
        has_returns=any(each.returns for each in page.history.environments),
        config=config_note or _shortened(sight.run),
        written=moment(time.time()),
        version=__version__,
        style=Markup(style),  # noqa: S704 - ours, from the package
        script=Markup(script),  # noqa: S704 - ours, from the package
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        moment=moment,
        number=number,
    )


def _page(sight: Sight, config: Any) -> Page:
    timeline = read_timeline(sight.records, sight.jobs)
    return Page(sight, timeline, read_history(sight.records, timeline, _parameters(config)))


def _environment() -> Environment:
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else "" if value is None else value,
    )


def _tiles(facts: Mapping[str, Any], page: Page) -> list[tuple[str, str, str]]:
    """The figures at the top: what, how much, and what to compare it with."""
    history, timeline = page.history, page.timeline
    size = f"{sum(each.size for each in history.iterations) / 1e6:,.1f} MB in banks" if history.iterations else ""
    limit = f"of at most {facts['max_iterations']}" if facts["max_iterations"] else "no limit"
    found = [
        ("iterations", number(facts["iteration"]), limit),
        ("experience", f"{facts['rows']:,} rows", size),
        ("drivers at work", duration(timeline.driven_s), count(len(timeline.drivers), "driver")),
        ("node-hours", number(round(sum(d.node_hours for d in timeline.drivers), 3)), "drivers' time on their nodes"),
        ("failures", f"{len(history.failures):,}", "on record, see below" if history.failures else "on record"),
    ]
    if facts["metric"] and not page.learners:
        until = f"last; the run ends when {facts['operator']} {number(facts['threshold'])}"
        best = page.sight.progress.best()
        found.insert(0, (facts["metric"], number(facts["reward"]), until))
        found.insert(1, ("best", number(facts["best_reward"]), f"in iteration {best[0]}" if best else ""))
    seconds = [sum(each.seconds.values()) for each in history.complete]
    if seconds:
        found.insert(-2, ("an iteration", duration(statistics.median(seconds)), "median, start to end"))
    return found


def _read_config(run: RunDir) -> tuple[Any, str]:
    """The configuration, or None and why there is none to show."""
    if not run.config.exists():
        return None, "This run has no config.toml: a Python program says what it consists of."
    try:
        from rose_hpc.config import load_config

        return load_config(run.config), ""
    except (RoseHpcError, OSError, tomllib.TOMLDecodeError) as error:
        return None, f"config.toml cannot be read: {error}"


def _parameters(config: Any) -> dict[str, dict[str, Any]]:
    return {each.name: each.parameters for each in config.environments.resolve()} if config else {}


def _shortened(run: RunDir) -> str:
    text = run.config.read_text(errors="replace")
    if len(text) > _CONFIG_CHARACTERS:
        return text[:_CONFIG_CHARACTERS] + f"\n# ... and {len(text) - _CONFIG_CHARACTERS:,} characters more"
    return text
