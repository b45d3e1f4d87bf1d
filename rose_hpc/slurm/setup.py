"""What a job needs before its driver: plain files, one value a line, which the static job script reads as data.

::

    slurm/setup/python     the interpreter that submitted; not written where venv or conda bring one
    slurm/setup/script     [slurm] setup, sourced first
    slurm/setup/modules    [slurm] modules, one a line
    slurm/setup/conda      [slurm] conda
    slurm/setup/venv       [slurm] venv
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rose_hpc import publishing
from rose_hpc.errors import UsageError
from rose_hpc.rundir import RunDir

if TYPE_CHECKING:
    from rose_hpc.config_models import Slurm


def setup_files(slurm: Slurm, base: Path) -> dict[str, tuple[str, ...]]:
    """File name -> its lines.

    Args:
        slurm: the settings.
        base: the folder that relative paths count from.

    Raises:
        UsageError: the venv or the script is not there.
    """
    files: dict[str, tuple[str, ...]] = {}
    if slurm.setup is not None:
        files["script"] = (_existing(base / slurm.setup, "slurm.setup", "a shell script to source"),)
    if slurm.modules:
        files["modules"] = slurm.modules
    if slurm.conda is not None:
        folder = base / slurm.conda
        files["conda"] = (str(folder) if "/" in slurm.conda else slurm.conda,)
    if slurm.venv is not None:
        activate = _existing(base / slurm.venv / "bin/activate", "slurm.venv", "make it with python3 -m venv")
        files["venv"] = (str(Path(activate).parents[1]),)
    if slurm.conda is None and slurm.venv is None:
        files["python"] = (sys.executable,)
    return files


def write_setup(run: RunDir, files: dict[str, tuple[str, ...]]) -> None:
    """Bring ``slurm/setup/`` to what ``files`` says."""
    folder = run.slurm / "setup"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in files:
            publishing.remove(path)
    for name, lines in files.items():
        publishing.write_file(folder / name, "".join(f"{line}\n" for line in lines).encode())


def _existing(path: Path, key: str, hint: str) -> str:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise UsageError(f"{key}: there is no {path}", hint=hint)
    if "\n" in str(path):
        raise UsageError(f"{key}: {str(path)!r} has a newline in its path")
    return str(path)
