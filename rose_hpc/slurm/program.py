"""A Python program as a run that is not begun yet: what the job needs to start it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rose_hpc import publishing
from rose_hpc.errors import UsageError
from rose_hpc.rundir import RunDir

if TYPE_CHECKING:
    from rose_hpc.slurm.site import Site


def check_program(program: Path) -> Path:
    """Its absolute path.

    Raises:
        UsageError: it is not there.
    """
    if not program.is_file():
        raise UsageError(f"{program}: no such file", hint="name the program, e.g. train.py")
    return program.absolute()


def run_name(program: Path) -> str:
    """What its runs are called."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in program.stem)[:48] or "program"


def write_program(run: RunDir, program: Path, arguments: Sequence[str], site: str) -> None:
    """Note how the program is to be started, and the profile its jobs are made from."""
    facts = {"argv": [str(program), *arguments], "cwd": str(Path.cwd())}
    publishing.write_file(run.slurm / "program.json", (json.dumps(facts, indent=1) + "\n").encode())
    publishing.write_file(run.slurm / "site.toml", site.encode())


def read_program(run: RunDir) -> dict[str, Any] | None:
    """``argv`` (without interpreter) and ``cwd``; None when the run is not a submitted program's."""
    try:
        facts = json.loads((run.slurm / "program.json").read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def change_site(run: RunDir, sets: Sequence[str]) -> Site:
    """The profile that the program's next jobs are made from, changed as ``--set`` says."""
    from rose_hpc.slurm.site import dump_site, load_site

    path = run.slurm / "site.toml"
    site = load_site(path if path.is_file() else None, sets)
    if sets:
        publishing.write_file(path, dump_site(site).encode())
    return site
