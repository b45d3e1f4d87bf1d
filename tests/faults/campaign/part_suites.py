"""Faults that have test files of their own: each test is a trial of the campaign too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cells import Cell, Part

ROOT = Path(__file__).parents[3]
#: tests that have a long form of their own are asked for it
LONG = {"ROSE_HPC_TORTURE": "1"}
#: the files of each part
FILES: dict[str, tuple[str, ...]] = {}


def collected(files: tuple[str, ...]) -> list[str]:
    """What of files is run at once, by name: a test, or all of a class, which share what took long to set up.

    Raises:
        RuntimeError: a file is not there, or nothing is found in it.
    """
    if gone := [file for file in files if not (ROOT / file).is_file()]:
        raise RuntimeError(f"there is no {', '.join(gone)}")
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", *files]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **LONG})
    tests = [line for line in done.stdout.splitlines() if line.startswith("tests/") and "::" in line]
    if empty := [file for file in files if not any(test.startswith(f"{file}::") for test in tests)]:
        raise RuntimeError(f"no tests are found in {', '.join(empty)}: {done.stdout[-2000:]}{done.stderr[-500:]}")
    return list(dict.fromkeys(map(_unit, tests)))


def _unit(test: str) -> str:
    file, first, *rest = test.split("::")
    return f"{file}::{first}" if rest and "[" not in first else test


def passes(test: str) -> list[str]:
    """Run one test, or the tests of a class; no violations where they pass, and are not skipped."""
    argv = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", test]
    env = {**os.environ, **LONG, "ROSE_HPC_NO_SKIP": "1"}
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    passed = done.returncode == 0 and re.search(r"\d+ passed", done.stdout)
    return [] if passed else [done.stdout[-2000:]]


def suite(name: str, fault: str, *files: str) -> Part:
    """A part whose cells are tests; they have no short form, for ``make test`` runs them as such."""
    FILES[name] = files

    @contextmanager
    def cells(folder: Path, long: bool) -> Iterator[list[Cell]]:
        tests = collected(files) if long else []
        yield [(test, lambda test=test: passes(test)) for test in tests]

    return Part(name, fault, cells)


PARTS = (
    suite(
        "inputs",
        "run directories that are none, half made, of another version, half deleted, changed by hand, read-only",
        "tests/unit/test_journal.py",
        "tests/unit/test_rundir.py",
        "tests/unit/test_publishing.py",
        "tests/integration/test_bad_run.py",
        "tests/integration/test_resume.py",
        "tests/integration/test_branch.py",
    ),
    suite("forged", "forged shards and banks", "tests/faults/test_store_hostile.py"),
    suite(
        "ranks",
        "one, half, all environments exit, crash, run out of memory, hang, stop, or print without end",
        "tests/faults/test_ranks.py",
        "tests/integration/test_signals.py",
    ),
    suite(
        "patience",
        "retries, late environments, walltimes, supervisors that hang, connections that lose messages, learners killed",
        "tests/integration/test_patience.py",
        "tests/integration/test_walltime.py",
        "tests/integration/test_hub.py",
        "tests/integration/test_population.py",
        "tests/unit/test_local.py",
        "tests/unit/test_ownership.py",
    ),
    suite(
        "slurm",
        "a real Slurm: walltime, requeue x 6, slurmd lost, signals, in every stage; slurmctld restarted, node drained",
        "tests/cluster/test_faults.py",
        "tests/cluster/test_pilot.py",
        "tests/cluster/test_submit.py",
    ),
)
