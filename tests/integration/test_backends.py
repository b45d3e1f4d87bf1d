"""The same program on asyncflow's own backend, which knows nothing of us: one engine task per stage and environment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import programs
import projects
import pytest

TOP = "from radical.asyncflow import LocalExecutionBackend"
COMMANDS = """
    pe = ParallelExperience(asyncflow, seed=3)

    @pe.environment_task(name="env_1", timeout_s=30)
    async def environment_1(*args):
        return f"{sys.executable} environment.py 2"

    @pe.environment_task(name="env_2")
    async def environment_2(*args):
        return f"{sys.executable} environment.py 3"

    @pe.update_task
    async def update(*args):
        return f"{sys.executable} update.py"

    @pe.as_stop_criterion(metric_name="MODEL_REWARD", threshold=15)
    async def check_reward(*args):
        return f"{sys.executable} check.py"

    state = await pe.learn()
    tell(state)
"""


def commands(folder: Path, backend: str = programs.FOREIGN, **files: str) -> Path:
    """The program of commands on a backend."""
    folder.mkdir(exist_ok=True)
    projects.write_project(folder, **files)
    return programs.write(folder, COMMANDS, backend=backend, top=TOP)


def functions(folder: Path, threshold: float = 1.5, broken: str = "") -> Path:
    """The program of functions on asyncflow's threads."""
    body = programs.FUNCTIONS.replace("THRESHOLD", str(threshold))
    body = body.replace("task = rose_hpc", f"{broken}; task = rose_hpc", 1) if broken else body
    loop = "async for state in pe.start():\n    tell(state)"
    return programs.write(folder, body, loop, backend=programs.FOREIGN, top=TOP)


def test_commands_run_the_same_on_both_backends(folder: Path) -> None:
    """Same seed, same banks, policies and rewards, whether the backend is ours or not."""
    essences = []
    for name, backend in (("ours", programs.EMBEDDED), ("theirs", programs.FOREIGN)):
        done = programs.run(commands(folder / name, backend))
        assert done.returncode == 0, done.stderr
        assert programs.states(done)[0]["metric_value"] == 20.0
        essences.append(projects.essence(programs.run_of(folder / name)))
    assert essences[0] == essences[1]


def test_every_attempt_is_one_task_of_the_engine(tmp_path: Path) -> None:
    """One engine task for each stage and environment: each has its own supervisor, its report and its log."""
    done = programs.run(commands(tmp_path))
    assert done.returncode == 0, done.stderr
    run = programs.run_of(tmp_path)
    stages = ("collect-env_1", "collect-env_2", "merge", "update", "check")
    expected = {f"iter-{k:04d}-{stage}" for k in range(2) for stage in stages}
    assert {path.stem for path in (run / "logs").glob("*.log")} == expected
    assert not list((run / "scratch").glob("*.json*")), "orders and reports are not left behind"
    assert "wrote 2 rows as env_1" in (run / "logs" / "iter-0001-collect-env_1.log").read_text()


def test_a_failing_command_is_named(tmp_path: Path) -> None:
    """The environment, its log and its last lines, as on the embedded engine; mended, the run goes on."""
    program = commands(tmp_path, environment="import sys; print('last words'); sys.exit(6)")
    done = programs.run(program)
    assert done.returncode == 1
    assert "failed in iteration 0: it exited with code 6" in done.stderr
    assert "last words" in done.stderr
    run = programs.run_of(tmp_path)
    assert projects.records(run, "end")[0]["state"] == "failed"
    projects.write_project(tmp_path)
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr


def test_functions_run_in_threads(tmp_path: Path) -> None:
    """Values, shards and `current_task()` work where a function shares a process with others."""
    done = programs.run(functions(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [(state["a"], state["loss"], state["metric_value"]) for state in programs.states(done)] == [
        (0, 1.0, 1.0),
        (1, 0.5, 2.0),
    ]
    run = programs.run_of(tmp_path)
    rows = {r["environment"]: r["rows"] for r in projects.records(run, "rank", iteration=1)}
    assert rows == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("raise LookupError('no such state')", "it raised LookupError: no such state"),
        ("sys.exit('enough')", "it called sys.exit('enough')"),
    ],
)
def test_a_failing_function_is_named(broken: str, what: str, tmp_path: Path) -> None:
    """The environment and its error; the traceback is in its log."""
    done = programs.run(functions(tmp_path, broken=broken))
    assert done.returncode == 1
    assert f"environment a failed in iteration 0: {what}" in done.stderr
    run = programs.run_of(tmp_path)
    assert broken in (run / "logs" / "iter-0000-collect-a.log").read_text()
    assert projects.records(run, "end")[0]["state"] == "failed"


def test_a_signal_ends_supervisors_that_nobody_holds(tmp_path: Path) -> None:
    """Asyncflow leaves a cancelled task's process running; its supervisor sees that the driver has let go, and ends."""
    commands(tmp_path, environment="import time; open('ready', 'w').close(); time.sleep(999)")
    with projects.start(cwd=tmp_path, program="program.py") as driver:
        projects.wait_for((tmp_path / "ready").exists)
        driver.send_signal(signal.SIGTERM)
        _, errors = driver.communicate(timeout=15)
    assert driver.returncode == 130, errors
    run = programs.run_of(tmp_path)
    assert projects.records(run, "end")[0]["state"] == "stopped"
    projects.wait_for(lambda: not projects.processes_of(tmp_path), 15)
    projects.write_project(tmp_path)
    assert projects.rose_hpc("resume", run).returncode == 0


ONCE = """
import sys
from pathlib import Path
from rose_hpc.execution import rank
rank.SILENCE_S, rank.HEARTBEAT_CHECK_S = 1.0, 0.1
sys.exit(rank.main(["--once", sys.argv[1].encode().hex()]))
"""


@pytest.mark.parametrize("gone", ["silent", "taken over", "let go"])
def test_a_supervisor_without_a_socket_watches_the_heartbeat(gone: str, tmp_path: Path) -> None:
    """When the driver falls silent, lets go, or another takes over, the supervisor ends, and its command with it."""
    owner: dict[str, Any] = {"epoch": 4, "host": "elsewhere", "pid": 1}

    def beat(**changes: Any) -> None:
        facts = json.dumps({**owner, **changes, "heartbeat": time.time()})
        (tmp_path / "scratch.json").write_text(facts)
        (tmp_path / "scratch.json").rename(tmp_path / "owner.json")

    hangs = "import os, time; open('ready', 'w').write(str(os.getpid())); time.sleep(999)"
    attempt = {"id": "a", "kind": "command", "argv": [sys.executable, "-S", "-c", hangs], "cwd": str(tmp_path)}
    spec = tmp_path / "a spec's.json"
    spec.write_text(json.dumps({"attempt": attempt, "owner": str(tmp_path / "owner.json"), "epoch": 4}))
    beat()
    command = [sys.executable, "-c", ONCE, str(spec)]
    with projects.Driver(command, stderr=subprocess.PIPE, text=True) as supervisor:
        pid = int(projects.wait_for(lambda: beat() or (tmp_path / "ready").read_text()))
        beat()
        assert supervisor.poll() is None
        if gone != "silent":
            beat(**({"epoch": 5} if gone == "taken over" else {"pid": None}))
        _, errors = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert "the driver is gone" in errors
    projects.wait_for(lambda: not Path(f"/proc/{pid}/exe").exists(), 10)  # gone, or a zombie
    assert not Path(f"{spec}.done").exists()
