"""``rose-hpc init DIR``: a small project that runs as it is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from rose_hpc.errors import UsageError
from rose_hpc.resources import resource_path

_NAME = "@NAME@"


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def command(directory: Path) -> None:
    """Write a small project into DIR: a toy simulator, three environments, an update, a check, and their config.

    It needs nothing but numpy, converges within seconds, and is made to be replaced file by file. Files that are
    there already are never overwritten.

    Example: rose-hpc init my-project && rose-hpc run my-project/config.toml
    """
    for path in write_project(directory):
        click.echo(f"wrote {path}")
    click.echo(f"next: rose-hpc run {shlex.quote(str(directory / 'config.toml'))}")


def write_project(directory: Path) -> list[Path]:
    """Write the template project into a folder, made if need be; returns the files written.

    Raises:
        UsageError: files of the same names are there (nothing is written then), or the folder cannot be written.
    """
    template = resource_path("templates/project")
    sources = sorted(path for path in template.iterdir() if path.is_file())
    if there := [path.name for path in sources if (directory / path.name).exists()]:
        raise UsageError(f"{directory} already has {', '.join(there)}", hint="name a new folder, or move them away")
    name = project_name(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for source in sources:
            target = directory / source.name
            with open(target, "x", encoding="utf-8") as file:
                file.write(source.read_text(encoding="utf-8").replace(_NAME, name))
            written.append(target)
    except OSError as error:
        raise UsageError(f"{error.filename or directory}: {error.strerror}", hint="name a folder to write in") from None
    return written


def project_name(directory: Path) -> str:
    """The folder's name as a configuration may use it."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", directory.resolve().name)[:64].strip(".-")
    return name or "project"
