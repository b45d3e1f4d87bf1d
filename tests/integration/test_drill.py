"""The drill kills a training in every way, and says what was lost: nothing, or what the user's scripts lose."""

from __future__ import annotations

import json
from pathlib import Path

import projects
import pytest

#: quick scripts, with something to strike at: an environment that takes a moment
TRAINING = {
    **projects.LIGHT,
    "environment": "import time; time.sleep(0.3)",
    "config": projects.LIGHT["config"].replace("[environments]", "[environments]\ntimeout_s = 60"),
}


def test_nothing_is_lost(folder: Path) -> None:
    """A deterministic training survives everything; the report names what happened, and nothing stays behind."""
    projects.write_project(folder, **TRAINING)
    done = projects.rose_hpc("drill", "config.toml", "--iterations", 6, "--json", timeout=170)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["ok"], report["lost"], report["nondeterministic"]) == (True, [], [])
    blows = {happened["blow"] for happened in report["happened"]}
    assert {"the driver is killed while it collects", "preemption: TERM", "everything is killed"} <= blows
    assert all(happened["left"] == 0 for happened in report["happened"])
    assert not Path(report["folder"]).exists()
    assert projects.processes_of(folder) == []


def test_what_a_script_counts_itself_is_lost(folder: Path) -> None:
    """A script that behaves otherwise when it is repeated is found: exit 1, the iteration named, the runs kept."""
    counts = """
        import os, time
        with open(os.environ["ROSE_HPC_RUN"] + "/tries", "a") as file:
            file.write("x")
        time.sleep(0.3)
    """
    update = """
        import os, pathlib
        tries = pathlib.Path(os.environ["ROSE_HPC_RUN"], "tries").read_text()
        pathlib.Path(os.environ["ROSE_HPC_POLICY"], "weights").write_text(tries)
    """
    projects.write_project(folder, **{**TRAINING, "environment": counts, "update": update})
    done = projects.rose_hpc("drill", "config.toml", "--iterations", 4, "--run-dir", "kept", timeout=170)
    assert done.returncode == 1, done.stderr
    assert "lost: policy and state of iteration " in done.stdout
    assert (folder / "kept" / "disturbed" / "journal.jsonl").is_file()


def test_scripts_without_a_seed_are_not_blamed_on_us(folder: Path) -> None:
    """Where two undisturbed runs differ the drill says so, asks for no equality, and still holds what was committed."""
    update = """
        import os, pathlib
        pathlib.Path(os.environ["ROSE_HPC_POLICY"], "weights").write_bytes(os.urandom(8))
    """
    projects.write_project(folder, **{**TRAINING, "update": update})
    done = projects.rose_hpc("drill", "config.toml", "--iterations", 2, timeout=170)
    assert done.returncode == 0, done.stderr
    assert "not deterministic: policy and state of iteration 0 differs between two undisturbed runs" in done.stdout
    assert "do they take ROSE_HPC_SEED" in done.stdout


def test_functions_are_struck_where_they_are_called(folder: Path) -> None:
    """Of environments that are functions, the process is killed in which one is called; the driver goes on."""
    config = """
        seed = 1
        environments = {function = "functions:environment", retries = 2, grid.number = [1, 2, 3, 4]}
        update = {function = "functions:update"}
        loop.max_iterations = 1
    """
    projects.write_project(folder, config=config)
    (folder / "functions.py").write_text(
        "import time\n"
        "def environment(number):\n    time.sleep(number / 8)\n    return number\n"
        "def update(*numbers):\n    return sum(numbers)\n"
    )
    options = ("--iterations", 1, "--run-dir", "kept", "--json")
    done = projects.rose_hpc("drill", "config.toml", *options, timeout=170)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)["happened"][0]
    assert (first["blow"], first["exit_code"]) == ("an environment's process is killed", None)
    assert projects.records(folder / "kept" / "disturbed", "attempt")


@pytest.mark.parametrize(
    ("files", "words", "code"),
    [
        ({"environment": "raise SystemExit('no licence')"}, "no licence", 1),
        ({"config": "[environments]\ncommand = 'true'"}, "update", 2),
    ],
    ids=["a training that fails", "a configuration that is none"],
)
def test_what_cannot_be_drilled_is_said(folder: Path, files: dict[str, str], words: str, code: int) -> None:
    """A training that does not even run undisturbed is one line with its own words."""
    projects.write_project(folder, **{**TRAINING, **files})
    done = projects.rose_hpc("drill", "config.toml", timeout=170)
    assert done.returncode == code
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
