"""Faults that have test files of their own: each test is a trial of the campaign too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cells import Cell, Part

ROOT = Path(__file__).parents[3]
#: tests that have a long form of their own are asked for it
LONG = {"ROSE_HPC_TORTURE": "1"}


def collected(files: tuple[str, ...], words: str) -> list[str]:
    """The tests of files, by name; those files that are there."""
    there = [file for file in files if (ROOT / file).exists()]
    if not there:
        return []
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", *there, *(["-k", words] if words else [])]
    env = {**os.environ, **LONG}
    told = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env=env).stdout
    return [line for line in told.splitlines() if "::" in line]


def passes(test: str) -> list[str]:
    """Run one test; no violations where it passes."""
    argv = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", test]
    env = {**os.environ, **LONG, "ROSE_HPC_NO_SKIP": "1"}
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    return [] if done.returncode == 0 else [done.stdout[-2000:]]


def suite(name: str, fault: str, *files: str, words: str = "") -> Part:
    """A part whose cells are tests; they have no short form, for ``make test`` runs them as such."""

    @contextmanager
    def cells(folder: Path, long: bool) -> Iterator[list[Cell]]:
        tests = collected(files, words) if long else []
        yield [(test, lambda test=test: passes(test)) for test in tests]

    return Part(name, fault, cells)


PARTS = (
    suite(
        "journal",
        "the journal cut at every byte, every byte flipped; half-made and changed run directories",
        "tests/unit/test_journal.py",
        "tests/faults/test_journal.py",
        "tests/integration/test_bad_run.py",
    ),
    suite("forged", "forged shards and banks", "tests/faults/test_store_hostile.py"),
    suite(
        "ranks",
        "environments that die, crash, hang, stop, or print without end",
        "tests/faults/test_ranks.py",
        "tests/integration/test_signals.py",
    ),
    suite(
        "patience",
        "retries, late environments, walltimes, supervisors that hang, connections that lose messages",
        "tests/integration/test_patience.py",
        "tests/integration/test_walltime.py",
        "tests/integration/test_hub.py",
        "tests/unit/test_local.py",
    ),
    suite(
        "slurm",
        "a real Slurm: walltime, requeue, lost nodes, restarts of its daemons, cancelling",
        "tests/cluster/test_faults.py",
        "tests/cluster/test_pilot.py",
        "tests/cluster/test_submit.py",
    ),
)
