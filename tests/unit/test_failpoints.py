"""Failpoints: nothing without the variable, one death where it says, and every name in one place of the code."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import projects
import pytest

import rose_hpc
from rose_hpc import failpoints

CODE = "from rose_hpc import failpoints\nfor k in range(4):\n    print(k, flush=True)\n    failpoints.hit('here')\n"


def run(tmp_path: Path, spec: str | None) -> subprocess.CompletedProcess[str]:
    """A process that comes to the point ``here`` four times."""
    env = {} if spec is None else {failpoints.VARIABLE: spec, failpoints.MARK_VARIABLE: str(tmp_path / "mark")}
    return subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("spec", "lines"), [("here", 1), ("here:3", 3), ("here:4:KILL", 4)])
def test_a_process_dies_where_it_is_told(tmp_path, spec, lines):
    """It is killed as it comes to the point for the n-th time, and a second process with the same variable is not."""
    done = run(tmp_path, spec)
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.splitlines()) == lines
    assert run(tmp_path, spec).returncode == 0


@pytest.mark.parametrize("spec", [None, "", "elsewhere", "here:5"])
def test_nobody_dies_elsewhere(tmp_path, spec):
    """Without the variable, and at other points or counts, nothing happens."""
    done = run(tmp_path, spec)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 4)


def test_a_process_waits_where_it_is_told(tmp_path):
    """It says that it is there, and goes on when it may, and whenever it comes there again."""
    env = {failpoints.VARIABLE: "here:1:WAIT", failpoints.MARK_VARIABLE: str(tmp_path / "mark")}
    with subprocess.Popen([sys.executable, "-c", CODE], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        projects.wait_for((tmp_path / "mark").exists)
        assert process.poll() is None
        (tmp_path / "mark.go").touch()
        assert (process.stdout.read(), process.wait()) == (b"1\n2\n3\n", 0)


def test_points_can_be_listed(tmp_path):
    """``?`` notes every time a point is come to, in whatever process."""
    assert run(tmp_path, "?").returncode == 0
    assert (tmp_path / "mark").read_text() == "here\n" * 4


def test_off_is_an_empty_function():
    """What runs without the variable does nothing at all."""
    off = failpoints.armed({})
    assert failpoints.hit is off
    assert off.__code__.co_names == ()  # it calls and reads nothing
    assert failpoints.armed({failpoints.VARIABLE: "here"}) is not off


def test_every_name_stands_in_one_place():
    """A name says where a process died; there are more than the 45 that the campaign promises."""
    names = Counter(
        name
        for path in Path(rose_hpc.__file__).parent.rglob("*.py")
        for name in re.findall(r'failpoints\.hit\("([^"]*)"\)', path.read_text())
        if path.name != "failpoints.py"
    )
    assert set(names.values()) == {1}, names
    assert len(names) >= 45
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in names)
