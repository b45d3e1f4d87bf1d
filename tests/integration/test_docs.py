"""What the README and docs/ show is what happens: their files are written, their commands and programs run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import projects
import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w.]+\.(?:py|toml))(?:: |\n)")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return [(m[1], m[2]) for m in _BLOCK.finditer(page.read_text())]


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README shows, and its run."""
    folder = tmp_path_factory.mktemp("readme")
    for _, text in blocks(ROOT / "README.md"):
        if match := _FILE.match(text):
            (folder / match[1]).write_text(text)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "runs/walk-7f3a", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_readme_shows_a_whole_project(readme: Path) -> None:
    """A reader who copies the README's files has everything."""
    assert {path.name for path in readme.glob("*.*")} == {
        "config.toml",
        "environment.py",
        "update.py",
        "check.py",
        "train.py",
    }  # fmt: skip - a set in one look


def test_the_readmes_commands_work(readme: Path) -> None:
    """Every rose-hpc line of the README is a command that succeeds."""
    lines = [line for kind, text in blocks(ROOT / "README.md") if kind == "sh" for line in text.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("rose-hpc")]
    assert len(commands) >= 8
    for command in commands:
        if command[0] == "doctor" or (command[0] == "submit" and "--dry-run" not in command):
            continue  # these need a cluster, and are tried on one in tests/cluster
        done = projects.rose_hpc(*command, cwd=readme)
        assert done.returncode == 0, (command, done.stderr)


def test_the_readmes_program_converges(readme: Path) -> None:
    """The README's program runs as it is, and says what it found."""
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=readme, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("best distance")[1]) > 1.5


@pytest.mark.parametrize("page", ["tasks.md", "population.md"])
def test_a_pages_project_converges(page: str, tmp_path: Path) -> None:
    """A page that shows a configuration with its files, or a program, shows one that runs."""
    for _, text in blocks(ROOT / "docs" / page):
        if match := _FILE.match(text):
            (tmp_path / match[1]).write_text(text)
    done = projects.rose_hpc("run", "config.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if (program := tmp_path / "program.py").exists():
        done = projects.run_program(program)
        assert done.returncode == 0, done.stderr


def test_the_journal_page_reads_a_journal(readme: Path) -> None:
    """docs/runs.md shows how to read rewards out of a journal, and it does."""
    text = next(text for kind, text in blocks(ROOT / "docs/runs.md") if kind == "python")
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=readme, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 ")


def test_the_journal_page_names_every_kind_of_record() -> None:
    """docs/runs.md has a row for each kind that the package writes, and for no other."""
    source = "\n".join(path.read_text() for path in (ROOT / "rose_hpc").glob("*.py"))
    written = set(re.findall(r"\.record(?:_all|_now)?\(\s*\"(\w+)\"", source))
    named = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/runs.md").read_text(), re.MULTILINE))
    assert written == named


def test_a_task_can_be_tried_by_hand(readme: Path, tmp_path: Path) -> None:
    """The commands of docs/tasks.md for trying a script without a run work."""
    text = next(text for kind, text in blocks(ROOT / "docs/tasks.md") if kind == "sh")
    shard = tmp_path / "shard.h5"
    script = text.replace("/tmp/shard.h5", str(shard))  # noqa: S108 - the page's own words
    script = script.replace("python", sys.executable).replace("rose-hpc", f"{sys.executable} -m rose_hpc")
    done = subprocess.run(["bash", "-ec", script], cwd=readme, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "100 rows" in done.stdout


def test_the_configuration_page_is_up_to_date() -> None:
    """docs/configuration.md is what the models say now."""
    script = ROOT / "docs/make_configuration.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == (ROOT / "docs/configuration.md").read_text()


def test_the_programs_page_shows_a_program(tmp_path: Path) -> None:
    """The program of docs/programs.md runs as it is: its states, and the configuration it sets, are what it prints."""
    text = next(text for kind, text in blocks(ROOT / "docs/programs.md") if kind == "python")
    (tmp_path / "program.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 5.0 5", "1 15.0 15", "2 20.0 20"]
