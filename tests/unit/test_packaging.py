"""What is installed: the wheel carries what a clone has, and shipped files are found in both."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rose_hpc.errors import UsageError
from rose_hpc.resources import resource_path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("configs", "jobscripts", "rose_hpc")
PROBES = {"configs/sites": "probe.toml", "jobscripts": "probe.sbatch"}


def _shipped_files(root: Path) -> set[str]:
    """The files of a clone that belong into a wheel, by their names there."""
    files = (path for folder in SHIPPED for path in (root / folder).rglob("*"))
    names = (path.relative_to(root) for path in files if path.is_file() and "__pycache__" not in path.parts)
    return {str(name if name.parts[0] == "rose_hpc" else Path("rose_hpc", name)) for name in names}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the tree, so that building leaves nothing behind in it, and nothing of an older build gets in."""
    clone = tmp_path_factory.mktemp("clone") / "rose_hpc"
    for folder in ("configs/sites", "jobscripts"):  # what git keeps of an empty folder is nothing
        (clone / folder).mkdir(parents=True)
        (clone / folder / PROBES[folder]).touch()
    for name in filter(lambda name: (ROOT / name).exists(), SHIPPED):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    return clone


def _build(source: Path, what: str, output: Path) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", what, "--outdir", str(output), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = output.iterdir()
    return built


def test_wheel_carries_the_whole_package(clone, tmp_path):
    """Every file of rose_hpc/, configs/ and jobscripts/ is in the wheel, with the console script and the licence."""
    with zipfile.ZipFile(_build(clone, "--wheel", tmp_path / "dist")) as wheel:
        names = set(wheel.namelist())
        (entry_points,) = (wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert _shipped_files(clone) - names == set()
    assert {f"rose_hpc/{folder}/{probe}" for folder, probe in PROBES.items()} | {"rose_hpc/py.typed"} <= names
    assert "rose-hpc = rose_hpc.cli:main" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_from_a_source_distribution_is_the_same(clone, tmp_path):
    """A source distribution holds all that is needed: the wheel built from it has the same files."""
    sdist = _build(clone, "--sdist", tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(_build(source, "--wheel", tmp_path / "dist")) as wheel:
        assert _shipped_files(clone) - set(wheel.namelist()) == set()


def test_shipped_files_are_found():
    """resource_path gives files that exist, in a clone as in an installation, by their names in the clone."""
    assert resource_path("templates/project/config.toml").is_file()
    assert resource_path("configs").is_dir()
    assert resource_path("configs").is_absolute()


@pytest.mark.parametrize("name", ["configs/no-such.toml", "../pyproject.toml", "errors.py", "", "configs/../errors.py"])
def test_only_shipped_files_are_found(name):
    """What is not shipped is an error that says where was looked, not a path to something else."""
    with pytest.raises(UsageError, match="is not shipped"):
        resource_path(name)


def test_version_stands_once():
    """The version that the package tells is the one it is installed as."""
    import rose_hpc

    declared = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert rose_hpc.__version__ == declared.group(1)


def test_make_asks_for_a_newer_python(tmp_path):
    """An interpreter that is too old is refused in one line that says what to type, and no .venv is left."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").write_text('requires-python = ">=99.1"\n')
    ran = subprocess.run(
        ["make", "-s", "lint", f"PYTHON={sys.executable}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    assert "Python 99.1 or newer is needed; name one: make PYTHON=python99.1 ..." in ran.stderr
    assert not (tmp_path / ".venv").exists()
