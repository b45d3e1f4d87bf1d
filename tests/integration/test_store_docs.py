"""docs/format.md and docs/experience.md: what they show is run, and does what they say."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import projects
import pytest

from rose_hpc.experience.bank import ExperienceBank

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's first two programs have run."""
    path = tmp_path_factory.mktemp("docs")
    first, replay, _ = blocks("experience.md", "python")
    run(first + replay, path)
    return path


def run(program: str, folder: Path) -> None:
    """Run a program of the page; it must end well."""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_pages_commands_work(folder: Path) -> None:
    """Every rose-hpc line of the page is a command that succeeds, in order."""
    lines = [line for text in blocks("experience.md", "sh") for line in text.splitlines()]
    shutil.rmtree(folder / "datasets", ignore_errors=True)
    assert len(lines) == 5
    for line in lines:
        if "--plot" in line and importlib.util.find_spec("matplotlib") is None:
            continue  # an optional extra
        done = projects.rose_hpc(*shlex.split(line, comments=True)[1:], cwd=folder)
        assert done.returncode == 0, (line, done.stderr)
    with ExperienceBank.open(folder / "toy.h5") as toy, ExperienceBank.open(folder / "bank.h5") as bank:
        assert all(np.array_equal(toy[name], bank[name]) for name in bank.columns)


def test_every_program_of_the_page_is_python() -> None:
    """What needs an optional extra to run is Python at least."""
    for program in blocks("experience.md", "python"):
        compile(program, "experience.md", "exec", dont_inherit=True)


def test_the_pages_training_runs(folder: Path) -> None:
    """The program that feeds PyTorch runs as it is shown."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("optional extra: torch")
    run("from rose_hpc import ExperienceBank\n" + blocks("experience.md", "python")[2], folder)


def test_batches_are_what_the_page_says(folder: Path) -> None:
    """Streamed arrays are new, writable and contiguous, as torch.from_numpy wants them."""
    with ExperienceBank.open(folder / "bank.h5") as bank:
        stream = bank.stream(64, rng=0)
        for array in next(stream).values():
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert array.flags.owndata
        stream.close()  # type: ignore[attr-defined]  # a generator


def test_the_reader_of_the_format_page_reads(folder: Path) -> None:
    """The page's own reader, without rose_hpc, sees the columns, statistics, environments and returns that we see."""
    (program,) = blocks("format.md", "python")
    assert "rose_hpc import" not in program
    space: dict[str, object] = {}
    exec(compile(program, "format.md", "exec"), space)  # noqa: S102 - the page's program is what is tested
    columns, stats, environments = space["read"](folder / "bank.h5")  # type: ignore[operator]  # a function
    with ExperienceBank.open(folder / "bank.h5") as bank:
        assert set(columns) == set(bank.columns)
        for name in bank.columns:
            assert np.array_equal(columns[name], bank[name])
            np.testing.assert_allclose(stats[name], (bank.stats(name).mean, bank.stats(name).std))
    assert environments == {"env_1": (0, 200, 10.0), "env_2": (200, 400, 10.0)}


def test_the_reader_of_the_format_page_finds_damage(folder: Path, tmp_path: Path) -> None:
    """A flipped byte makes it stop."""
    (program,) = blocks("format.md", "python")
    space: dict[str, object] = {}
    exec(compile(program, "format.md", "exec"), space)  # noqa: S102 - the page's program is what is tested
    with ExperienceBank.open(folder / "bank.h5") as bank:
        offset = bank.parts[0].columns["rewards"].offset
    data = bytearray((folder / "bank.h5").read_bytes())
    data[offset] ^= 1
    (tmp_path / "bank.h5").write_bytes(data)
    with pytest.raises(AssertionError, match="rewards"):
        space["read"](tmp_path / "bank.h5")  # type: ignore[operator]  # a function
