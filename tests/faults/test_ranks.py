"""One, half or all environments die, in whatever way: tried again, or done again by the next driver, nothing is lost.

``ROSE_HPC_TORTURE=1 pytest tests/faults/test_ranks.py`` tries every way with every number of them.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from pathlib import Path
from typing import Any

import projects
import pytest

TORTURE = bool(os.environ.get("ROSE_HPC_TORTURE"))
#: dies the first time in iteration 1, if its number is among the first so many
DYING = """
    import os, pathlib, sys

    def die():
        {how}

    number = int(os.environ["ROSE_HPC_ENVIRONMENT"].split("_")[1])
    mark = pathlib.Path("died-" + str(number))
    if os.environ["ROSE_HPC_ITERATION"] == "1" and number <= {many} and not mark.exists():
        mark.touch()
        print("last words", flush=True)
        die()
"""
#: how an environment can end, and the reason that is recorded for it
WAYS = {
    "exits": ("os._exit(9)", "exit"),
    "raises": ("raise RuntimeError('no luck')", "exit"),
    "is killed": ("os.kill(os.getpid(), 9)", "signal"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "signal"),
    "has no memory": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28)); bytes(1 << 30)",
        "exit",
    ),
    "leaves half a shard": ("open(os.environ['ROSE_HPC_SHARD'], 'wb').write(b'half'); sys.exit()", "shard"),
    "leaves none": ("sys.exit()", "shard"),
    "hangs": ("import time; time.sleep(999)", "timeout"),
    "prints for ever": ("while True: print('x' * 10_000)", "timeout"),
    "is stopped": ("os.kill(os.getpid(), 19)", "stopped"),
    "has a child that is stopped": (
        "import subprocess; subprocess.run(['sh', '-c', 'kill -STOP $$'])",
        "stopped",
    ),
}
NUMBERS = {"one": 1, "half": 2, "all": 4}
SHORT = [("prints for ever", "one"), ("has no memory", "half"), ("crashes", "all")]
CONFIG = """
    name = "dying"
    seed = 7
    [environments]
    command = "{python} environment.py {rows}"
    timeout_s = 60
    retry_backoff_s = 0.01
    [environments.grid]
    rows = [5, 6, 7, 8]
    [update]
    command = "{python} update.py"
    [check]
    command = "{python} check.py"
    threshold = 15
    [loop]
    max_iterations = 3
"""


def write(folder: Path, way: str = "exits", number: int = 0) -> None:
    """The toy project, so many of whose environments die in that way."""
    dying = textwrap.dedent(DYING).format(how=WAYS[way][0], many=number)
    projects.write_project(folder, environment=dying + textwrap.dedent(projects.ENVIRONMENT), config=CONFIG)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    write(folder)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return projects.essence(folder / "r")


def limits(way: str) -> list[str]:
    """A time limit that a machine under load keeps, where the environment would not end by itself."""
    return ["--set", "environments.timeout_s=8"] if WAYS[way][1] == "timeout" else []


@pytest.mark.parametrize(("way", "who"), list(itertools.product(WAYS, NUMBERS)) if TORTURE else SHORT)
def test_who_died_is_tried_again(way: str, who: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """With a retry, the run ends as an undisturbed one; each death is on record, with its reason, and in the log."""
    write(tmp_path, way, NUMBERS[who])
    options = ("--set", "environments.retries=1", *limits(way))
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", *options, cwd=tmp_path, timeout=170)
    assert done.returncode == 0, done.stderr
    failed = projects.records(tmp_path / "r", "attempt")
    assert {(r["environment"], r["reason"]) for r in failed} == {
        (f"env_{number}", WAYS[way][1]) for number in range(1, NUMBERS[who] + 1)
    }
    assert projects.essence(tmp_path / "r") == undisturbed
    log = tmp_path / "r/logs/iter-0001-collect-env_1.log"
    assert log.stat().st_size < 65 * 1024 * 1024
    assert log.read_bytes().startswith(b"last words")
    projects.wait_for(lambda: not projects.processes_of(tmp_path), 10)


@pytest.mark.parametrize(("way", "who"), list(itertools.product(WAYS, NUMBERS)) if TORTURE else [("is killed", "half")])
def test_the_next_driver_does_what_is_missing(way: str, who: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Without a retry the run fails, keeping what the others did; resumed, it ends as an undisturbed one."""
    write(tmp_path, way, NUMBERS[who])
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", *limits(way), cwd=tmp_path, timeout=170)
    assert done.returncode == 1
    assert "failed in iteration 1" in done.stderr.splitlines()[-1]
    projects.wait_for(lambda: not projects.processes_of(tmp_path), 10)
    for _ in range(NUMBERS[who]):  # who had not begun when the first one failed may die under the next driver
        done = projects.rose_hpc("resume", "r", cwd=tmp_path, timeout=170)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert projects.essence(tmp_path / "r") == undisturbed
