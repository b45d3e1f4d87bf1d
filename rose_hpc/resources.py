"""The files that are shipped with the package: configurations, job scripts, templates."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from rose_hpc.errors import UsageError

# In a clone configs/ and jobscripts/ are top-level folders, and links to them stand in the package; in a wheel the
# files themselves do. So one folder serves both.
_ROOT = Path(__file__).resolve().parent
FOLDERS = ("configs", "jobscripts", "templates")


def resource_path(name: str) -> Path:
    """The absolute path of a shipped file or folder, e.g. ``resource_path("configs/cartpole.toml")``.

    Raises:
        UsageError: nothing of that name is shipped.
    """
    parts = PurePosixPath(name).parts
    path = _ROOT.joinpath(*parts)
    if not parts or parts[0] not in FOLDERS or ".." in parts or not path.exists():
        raise UsageError(f"{name!r} is not shipped with rose_hpc", hint=f"shipped are {', '.join(FOLDERS)} in {_ROOT}")
    return path
