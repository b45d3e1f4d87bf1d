"""System calls that fail, of everything that is published: the old state or the new one is there, and people are told.

Here a seeded share of the calls; ``make torture PARTS=syscalls`` has every call of every scenario fail in every way.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import failing_calls
import pytest
from failing_calls import FAILURES
from fault_scenarios import SCENARIOS, Found, mean_of, run, write_foreign

from rose_hpc.errors import ExperienceError
from rose_hpc.experience.foreign import import_foreign

SEED = int(os.environ.get("SYSCALLS_SEED", "0"))
SHARE = float(os.environ.get("SYSCALLS_SHARE", "0.03"))
#: those whose calls are few: all of them fail
SHORT = ("file", "publish", "journal")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    return failing_calls.build(tmp_path_factory.mktemp("library"))


def _told(found: list[Found]) -> str:
    return "\n".join(violation for each in found for violation in each.violations)


@pytest.mark.timeout(600)
def test_every_failing_call_of_what_is_short(library, tmp_path):
    """A file that is published, a config that is replaced and a journal: every call, every way to fail."""
    found = run(library, tmp_path, SHORT)
    assert not _told(found)
    assert [each.name for each in found] == list(SHORT)
    assert all(each.tried > 60 for each in found)


@pytest.mark.timeout(900)
def test_failing_calls_of_everything_else(library, tmp_path):
    """Shards, banks, policies and datasets: some calls of each in every way; no half a file, no bare error."""
    names = [name for name in SCENARIOS if name not in SHORT]
    found = run(library, tmp_path, names, seed=SEED, share=SHARE)
    assert not _told(found)
    assert [each.name for each in found] == names
    assert all(each.tried >= 14 for each in found)


@pytest.mark.timeout(600)
def test_failing_calls_of_the_child(library, tmp_path, monkeypatch):
    """A call of the process that parses a foreign file fails: the shard is there, or one line says why it is not."""
    source, output = tmp_path / "in" / "a.h5", tmp_path / "b.h5"
    source.parent.mkdir()
    write_foreign(source, chunks=True)
    content = source.read_bytes()
    monkeypatch.setenv("LD_PRELOAD", str(library))
    numbers = range(1, 150) if SHARE >= 1 else random.Random(SEED).sample(range(1, 80), 6)
    for at in numbers:
        fault = FAILURES[at % len(FAILURES)]
        for name, value in failing_calls.variable(tmp_path, at, fault).items():
            monkeypatch.setenv(name, value)
        error = None
        try:
            info = import_foreign(source, output)
        except ExperienceError as raised:
            error = raised
        if error is None:
            assert (info.rows, mean_of(output)) == (7, 2.0)
            output.unlink()
        else:
            assert os.strerror(fault.error) in error.message or "retrieve stat info" in error.message
            assert error.hint
            assert "\n" not in str(error)
        assert {path.name for path in tmp_path.iterdir()} == {"in"}
        assert source.read_bytes() == content


def test_the_library_sees_the_calls(library, tmp_path):
    """What is counted is what the store does: a scenario in which no call ever fails would prove nothing."""
    (found,) = run(library, tmp_path, ["bank"], share=0.01, fault="EIO once")
    assert found.calls > 10
