"""What a run need not keep goes when it is asked for, and is shown before."""

from __future__ import annotations

import json
from pathlib import Path

import programs
import projects


def everything(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.glob("iter-*/*")}


def test_gc_removes_what_new_settings_no_longer_keep(folder: Path) -> None:
    """After retention was tightened: what would go is listed, then it goes; what is needed and evidence stay."""
    config = projects.CONFIG.replace("[10, 20, 30]", "[2, 3]") + '[retention]\nbanks = "all"\nshards = true\n'
    projects.write_project(folder, config=config)
    assert projects.rose_hpc("run", "config.toml", "--run-dir", "r").returncode == 0
    run = folder / "r"
    before = everything(run)
    assert projects.rose_hpc("gc", run).stdout == "nothing to remove\n"
    text = (
        (run / "config.toml")
        .read_text()
        .replace('banks = "all"', "banks = 1")
        .replace("shards = true", "shards = false")
    )
    (run / "config.toml").write_text(text)
    (run / "iter-0001/shards/env_1.h5.damaged-0").write_text("evidence")
    (run / "scratch/left").write_bytes(b"x" * 10000)
    (run / ".config.toml.7.tmp").touch()
    dry = json.loads(projects.rose_hpc("gc", run, "--dry-run", "--json").stdout)
    names = {each["path"] for each in dry["removed"]}
    assert {"iter-0000/bank.h5", "iter-0002/shards/env_1.h5", "scratch/left", ".config.toml.7.tmp"} <= names
    assert "iter-0002/bank.h5" not in names
    assert dry["bytes"] >= 10000
    assert everything(run) == before
    done = projects.rose_hpc("gc", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(" are free")
    assert not any((run / name).exists() for name in names)
    assert (run / "iter-0001/shards/env_1.h5.damaged-0").exists()
    assert projects.rose_hpc("gc", run).stdout == "nothing to remove\n"
    assert projects.rose_hpc("inspect", run, "--check").returncode == 0
    assert projects.rose_hpc("resume", run, "--set", "check.threshold=35").returncode == 0


def test_gc_knows_a_programs_run(folder: Path) -> None:
    """A program's run has no configuration: its journal says what is needed."""
    program = programs.write(folder, programs.FUNCTIONS.replace("THRESHOLD", "2.5"), "await pe.learn()")
    assert programs.run(program).returncode == 0
    run = programs.run_of(folder)
    (run / "iter-0000/bank.h5").write_bytes(b"left by a killed driver")
    done = json.loads(projects.rose_hpc("gc", run, "--json").stdout)
    assert [each["path"] for each in done["removed"]] == ["iter-0000/bank.h5"]
    assert (run / "iter-0002/bank.h5").exists()


def test_a_driven_run_is_left_alone(tmp_path: Path) -> None:
    """While a driver lives, it is the one that removes."""
    environment = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.01)"
    projects.write_project(tmp_path, **{**projects.LIGHT, "environment": environment})
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=tmp_path) as driver:
        projects.wait_for(lambda: projects.records(tmp_path / "r", "job"))
        done = projects.rose_hpc("gc", tmp_path / "r")
        assert (done.returncode, f"driven by process {driver.pid}" in done.stderr) == (1, True)
        (tmp_path / "r" / "scratch" / "in use").touch()
        dry = projects.rose_hpc("gc", tmp_path / "r", "--dry-run")
        assert (dry.returncode, dry.stdout) == (0, "nothing to remove\n")
        (tmp_path / "go").touch()
        assert driver.wait(60) == 0


def test_status_says_how_much_of_the_disk(tmp_path: Path) -> None:
    """`status RUN` counts files and bytes, as far as that is quick."""
    config = projects.write_project(tmp_path, **projects.LIGHT)
    projects.rose_hpc("run", config, "--run-dir", tmp_path / "r")
    (tmp_path / "r/large").write_bytes(b"x" * 1_000_000)
    facts = json.loads(projects.rose_hpc("status", tmp_path / "r", "--json").stdout)
    files = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert facts["disk"]["complete"]
    assert facts["disk"]["files"] == len(files)
    assert 1_000_000 <= facts["disk"]["bytes"] < 2_000_000
    assert f"MB in {len(files)} files" in projects.rose_hpc("status", tmp_path / "r").stdout
