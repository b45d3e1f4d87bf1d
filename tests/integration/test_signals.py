"""Ctrl-C and SIGTERM end everything in bounded time and leave a run that goes on."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import projects
import pytest

from rose_hpc import EmbeddedExecutionBackend
from rose_hpc.driver import _workflow_engine
from rose_hpc.rundir import RunDir
from rose_hpc.signals import ENDING

#: ends at no signal but KILL, and has a child that does not either; both are quick once `go` is there
STUBBORN = """
    import os, signal, subprocess, sys, time
    if not os.path.exists("go"):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(999)"])  # ignores them too: inherited
        open("ready", "w").close()
        time.sleep(999)
"""
#: a driver may take so long to end: the promise is 5 s, of which 3 are the rank's; the rest is for a busy machine
PATIENCE_S = 15


def stubborn(folder: Path, stage: str = "environment") -> Path:
    """The light project with a stage that nothing but KILL ends; the run directory."""
    files = {**projects.LIGHT, stage: projects.LIGHT[stage]}
    text = "\n".join(line.strip() for line in projects.LIGHT[stage].splitlines())
    files[stage] = "\n".join(line.removeprefix("    ") for line in STUBBORN.splitlines()) + "\n" + text
    projects.write_project(folder, **files)
    return folder / "r"


def ended(driver: subprocess.Popen[str], run: Path) -> str:
    """Wait for its end, exit code 130, nothing left; what it said."""
    out, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 130
    assert projects.processes_of(run) == []  # no rank; supervisors see that the driver has gone
    projects.wait_for(lambda: not projects.processes_of(run.parent), 10)
    return out


@pytest.mark.parametrize("whole_group", [False, True], ids=["driver", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_the_run_goes_on(number: signal.Signals, whole_group: bool, folder: Path) -> None:
    """Exit code 130, an end record, no process left, even of a rank that ignores TERM; then `resume` converges."""
    run = stubborn(folder)
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=folder) as driver:
        projects.wait_for((folder / "ready").exists)
        os.killpg(driver.pid, number) if whole_group else driver.send_signal(number)
        out = ended(driver, run)
    assert f"interrupted by {number.name}; go on with `rose-hpc resume " in out
    assert out.splitlines()[-1] == str(run)
    (end,) = projects.records(run, "end")
    assert end["state"] == "stopped"
    assert number.name in end["reason"]
    facts = json.loads(projects.rose_hpc("status", run, "--json").stdout)
    assert (facts["state"], facts["iteration"], facts["owner"]) == ("stopped", 0, None)
    (folder / "go").touch()
    done = projects.rose_hpc("resume", run)
    assert done.returncode == 0, done.stderr


def test_an_update_is_interrupted_too(tmp_path: Path) -> None:
    """In whatever stage; the half-changed policy is not published, and the resumed run has no trace of it."""
    run = stubborn(tmp_path, "update")
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=tmp_path) as driver:
        projects.wait_for((tmp_path / "ready").exists)
        driver.send_signal(signal.SIGTERM)
        ended(driver, run)
    assert not (run / "iter-0000" / "policy").exists()
    (tmp_path / "go").touch()
    assert projects.rose_hpc("resume", run).returncode == 0
    assert len((run / "iter-0001" / "state" / "trace").read_text().split()) == 2


def test_an_impatient_user_changes_nothing(tmp_path: Path) -> None:
    """Ctrl-C again and again, while it ends: it still ends everything, and the run can be resumed."""
    run = stubborn(tmp_path)
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=tmp_path) as driver:
        projects.wait_for((tmp_path / "ready").exists)
        driver.send_signal(signal.SIGINT)
        projects.wait_for(lambda: projects.records(run, "end"))
        for _ in range(3):
            driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 130
    projects.wait_for(lambda: not projects.processes_of(run.parent), 10)
    (tmp_path / "go").touch()
    assert projects.rose_hpc("resume", run).returncode == 0


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("session-begun", signal.SIGINT),
        ("engine-starting", signal.SIGINT),
        ("engine-starting", signal.SIGTERM),
        ("engine-started", signal.SIGINT),
        ("engine-started", signal.SIGHUP),
    ],
)
def test_a_signal_before_anything_ran(point: str, number: signal.Signals, tmp_path: Path) -> None:
    """A run that is interrupted while it starts says so, leaves nothing running, and can be resumed."""
    run = stubborn(tmp_path)
    dies = {"ROSE_HPC_FAILPOINT": f"{point}:1:{number.name[3:]}", "ROSE_HPC_FAILPOINT_MARK": str(tmp_path / "mark")}
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=tmp_path, **dies) as driver:
        out, errors = driver.communicate(timeout=PATIENCE_S)
    assert (driver.returncode, errors) == (130, "")
    assert f"interrupted by {number.name}; go on with `rose-hpc resume " in out
    projects.wait_for(lambda: not projects.processes_of(tmp_path), 10)
    (end,) = projects.records(run, "end")
    assert end["state"] == "stopped"
    (tmp_path / "go").touch()
    assert projects.rose_hpc("resume", run).returncode == 0


def test_an_engine_that_is_cancelled_while_it_starts_leaves_nothing() -> None:
    """After however many turns of the event loop: no supervisor stays, and none is started in its place."""
    before = children_of(os.getpid())

    async def cancelled_after(turns: int) -> bool:
        backend = EmbeddedExecutionBackend()
        starting = asyncio.create_task(backend._ready())
        for _ in range(turns):
            await asyncio.sleep(0)
        done = starting.done()
        starting.cancel()
        await asyncio.wait([starting], timeout=PATIENCE_S)
        assert starting.done()
        if not starting.cancelled():
            await backend.shutdown()
        assert (backend._supervisor, backend._starting) == (None, None)
        projects.wait_for(lambda: children_of(os.getpid()) == before, 10)
        return done

    for turns in itertools.count():
        if asyncio.run(cancelled_after(turns)):
            break
    assert turns > 2


def test_the_workflow_engine_leaves_signals_to_the_driver(tmp_path: Path) -> None:
    """Its own handlers would shut it down while the loop still uses it."""
    told = []

    async def main() -> None:
        events, backend = asyncio.get_running_loop(), await EmbeddedExecutionBackend()
        for number in ENDING:
            events.add_signal_handler(number, told.append, number)
        engine = await _workflow_engine(backend, RunDir(tmp_path))
        for number in ENDING:
            os.kill(os.getpid(), number)
        async with asyncio.timeout(PATIENCE_S):
            while len(told) < len(ENDING):
                await asyncio.sleep(0)
        await engine.shutdown()

    asyncio.run(main())
    assert sorted(told) == sorted(ENDING)


def children_of(pid: int) -> list[int]:
    """Its processes that run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if parent == str(pid) and state != "Z":
                found.append(int(entry.name))
    return found


def test_a_supervisor_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """A supervisor that is killed takes its ranks with it; they begin anew with another, and the run goes on."""
    run = stubborn(tmp_path)
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=tmp_path) as driver:
        projects.wait_for((tmp_path / "ready").exists)
        (tmp_path / "go").touch()  # for those that begin from now on
        (supervisor,) = children_of(driver.pid)
        os.kill(supervisor, signal.SIGKILL)
        output, errors = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, errors
    assert "it was lost: its supervisor died; it begins anew" in output
    assert [r["reason"] for r in projects.records(run, "attempt")] == ["lost"]
    projects.wait_for(lambda: not projects.processes_of(run), 10)


def test_supervisors_that_die_again_and_again_end_the_run(tmp_path: Path) -> None:
    """What takes its supervisor with it every time stops the run, which says so and can be resumed."""
    files = {**projects.LIGHT, "environment": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"}
    projects.write_project(tmp_path, **files)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 1
    assert "environment env_1 failed in iteration 0: it was lost: its supervisor died" in done.stderr
    (tmp_path / "environment.py").write_text("")
    assert projects.rose_hpc("resume", "r", cwd=tmp_path).returncode == 0
