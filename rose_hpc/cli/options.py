"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
sets = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of the configuration, e.g. check.threshold=150.",
)
max_iterations = click.option("--max-iterations", type=click.IntRange(min=1), help="End after so many iterations.")
engine = click.option(
    "--engine",
    type=click.Choice(["auto", "embedded", "pilot"]),
    default="auto",
    help="auto: the pilot inside a Slurm job, the embedded engine elsewhere.",
)
config = click.argument("config", type=click.Path(path_type=Path))
run = click.argument("run", type=click.Path(path_type=Path))


def print_json(facts: Any) -> None:
    """One JSON object (or list) on stdout."""
    click.echo(json.dumps(facts, indent=2, allow_nan=False))


def run_options(command: F) -> F:
    """What ``run`` and ``submit`` take."""
    decorators = (
        config,
        click.option(
            "--run-dir", type=click.Path(path_type=Path), help="The run directory itself; default: runs/NAME-xxxx."
        ),
        click.option("--seed", type=click.IntRange(min=0, max=2**63 - 1), help="The seed all others come from."),
        max_iterations,
        sets,
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command
