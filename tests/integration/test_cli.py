"""The command line as people and scripts meet it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import projects
import pytest

from rose_hpc.cli import _COMMANDS

HEAVY = ("numpy", "h5py", "radical", "pydantic", "asyncio", "zmq")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs: `runs/done`, converged, and `runs/short`, at its max_iterations."""
    folder = tmp_path_factory.mktemp("cli")
    projects.write_project(folder, **projects.LIGHT)
    for name, code, options in (("done", 0, ()), ("short", 3, ("--max-iterations", 1))):
        done = projects.rose_hpc("run", "config.toml", "--run-dir", f"runs/{name}", *options, cwd=folder)
        assert done.returncode == code, done.stderr
        assert done.stdout.splitlines()[-1] == str(folder / "runs" / name)
        assert done.stderr == ""
    return folder


def test_every_command_shows_an_example() -> None:
    """`--help` of every command has an example, and the group names them all."""
    group = projects.rose_hpc("--help").stdout
    for name in _COMMANDS:
        shown = projects.rose_hpc(name, "--help")
        assert shown.returncode == 0
        assert f"Example: rose-hpc {name} " in shown.stdout
        assert f"  {name} " in group
    assert "Example: " in group


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["stauts"], "there is no command 'stauts'; did you mean 'status'?"),
        (["frobnicate"], "`rose-hpc --help` lists the commands"),
        (["run"], "Missing argument 'CONFIG'; see `rose-hpc run --help`"),
        (["run", "config.toml", "--fast"], "--fast"),
        (["run", "config.toml", "--seed", "-1"], "--seed"),
        (["run", "config.toml", "--set", "check.treshold=3"], "threshold"),
        (["run", "nothing.toml"], "no such file"),
        (["resume", "runs/done", "--max-iterations", "0"], "--max-iterations"),
        (["logs", "runs/done", "--environment", "env_9"], "environments: env_1"),
    ],
)
def test_usage_errors_are_one_line(runs: Path, arguments: list[str], what: str) -> None:
    """What cannot be done as asked: exit code 2, one line on stderr, nothing on stdout."""
    done = projects.rose_hpc(*arguments, cwd=runs)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("rose-hpc: error: ")
    assert what in done.stderr


def test_no_arguments_are_a_question(runs: Path) -> None:
    """`rose-hpc` alone shows the help."""
    done = projects.rose_hpc(cwd=runs)
    assert "Usage: rose-hpc" in done.stdout + done.stderr


def test_facts_are_json_where_asked(runs: Path) -> None:
    """`--json` prints one JSON value and nothing else, with what the contract promises."""
    one = json.loads(projects.rose_hpc("status", "runs/done", "--json", cwd=runs).stdout)
    assert {"run", "state", "iteration", "reward", "threshold", "jobs", "policy", "best_policy"} <= one.keys()
    assert (one["state"], one["iteration"], one["reward"], one["threshold"]) == ("converged", 2, 2.0, 1.5)
    assert one["policy"] == one["best_policy"] == str(runs / "runs" / "done" / "iter-0001" / "policy")
    everything = json.loads(projects.rose_hpc("status", "--json", cwd=runs).stdout)
    assert [facts["state"] for facts in everything] == ["converged", "max_iterations"]
    plan = json.loads(projects.rose_hpc("plan", "config.toml", "--json", cwd=runs).stdout)
    assert plan["environments"][0]["argv"] == [sys.executable, "-S", "environment.py"]


def test_status_without_a_run_lists_them(runs: Path, tmp_path: Path) -> None:
    """In ./runs, or in $ROSE_HPC_RUNS; where there are none it says how to make one; a damaged one hides no other."""
    here = projects.rose_hpc("status", cwd=runs).stdout
    there = projects.rose_hpc("status", cwd=tmp_path, ROSE_HPC_RUNS=str(runs / "runs")).stdout
    assert [line.split("  ")[:4] for line in here.splitlines()] == [line.split("  ")[:4] for line in there.splitlines()]
    assert re.search(r"runs/done +converged +2 +2 +> 1.5", here)
    assert re.search(r"runs/short +max_iterations +1 +1 ", here)
    assert "`rose-hpc run CONFIG` makes one" in projects.rose_hpc("status", cwd=tmp_path).stdout
    by_name = projects.rose_hpc("status", "done", cwd=tmp_path, ROSE_HPC_RUNS=str(runs / "runs"))
    assert "state:       converged: MODEL_REWARD 2 > 1.5" in by_name.stdout
    shutil.copytree(runs / "runs", tmp_path / "runs")
    journal = tmp_path / "runs" / "done" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"light", b"night", 1))
    damaged = projects.rose_hpc("status", cwd=tmp_path)
    assert damaged.returncode == 0
    assert "runs/short" in damaged.stdout
    assert "warning: " in damaged.stderr


def test_new_runs_are_made_in_the_runs_folder(tmp_path: Path) -> None:
    """Without --run-dir a run is <runs>/<name>-<4 hex digits>, in $ROSE_HPC_RUNS or ./runs."""
    projects.write_project(tmp_path / "project", **projects.LIGHT)
    for variables, place in (
        ({}, tmp_path / "runs"),
        ({"ROSE_HPC_RUNS": str(tmp_path / "else where")}, tmp_path / "else where"),
    ):
        done = projects.rose_hpc("run", "project/config.toml", "--max-iterations", 1, cwd=tmp_path, **variables)
        assert done.returncode == 3, done.stderr
        (run,) = place.iterdir()
        assert re.fullmatch(r"light-[0-9a-f]{4}", run.name)
        assert done.stdout.splitlines()[-1] == str(run)


def test_logs_are_shown_by_place(runs: Path) -> None:
    """By default those of the last iteration; one by stage, environment and iteration."""
    run = runs / "runs" / "done"
    everything = projects.rose_hpc("logs", run).stdout
    assert everything.splitlines()[:2] == ["==> iter-0001-collect-env_1.log <==", "collected 1"]
    one = projects.rose_hpc("logs", run, "--iteration", 0, "--environment", "env_1")
    assert one.stdout == "collected 0\n"
    listed = projects.rose_hpc("logs", run, "--stage", "check", "--list").stdout.splitlines()
    assert listed == [str(run / "logs" / "iter-0001-check.log")]
    followed = projects.rose_hpc("logs", run, "--follow", "--stage", "check")
    assert followed.stdout.splitlines()[-1] == "2"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["status", "runs/done"], ["status"], ["logs", "runs/done"], ["run", "--help"]]
)
def test_the_login_node_imports_nothing_heavy(runs: Path, arguments: list[str]) -> None:
    """`--help`, `status` and `logs` load no numpy, h5py, radical.* or pydantic, and answer at once."""
    code = f"""if True:
        import sys
        from rose_hpc.cli import main
        try:
            main({arguments!r})
        except SystemExit as end:
            assert not end.code, end
        heavy = {{name.split(".")[0] for name in sys.modules}} & {set(HEAVY)}
        print("HEAVY", sorted(heavy))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=runs, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_a_closed_pipe_is_no_error(runs: Path) -> None:
    """`rose-hpc status | head -1` ends without a traceback."""
    with subprocess.Popen(
        [sys.executable, "-m", "rose_hpc", "logs", "runs/done"],
        cwd=runs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as done:
        assert done.stdout is not None
        done.stdout.close()
        assert done.stderr is not None
        assert done.stderr.read() == ""


def terminal(*arguments: str, cwd: Path, enough: str, then: Path) -> tuple[int, str]:
    """Run on a pseudo-terminal, making ``then`` once ``enough`` was shown; exit code, and the text without colours."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "150", "LINES": "40"}
        os.execve(  # noqa: S606 - the child of a fork becomes the program under test
            sys.executable, [sys.executable, "-m", "rose_hpc", *arguments], environment
        )
    text = ""
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
        if re.search(enough, text):
            then.touch()
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def test_a_terminal_gets_a_live_view(folder: Path) -> None:
    """Iteration, stage, a bar per environment, reward against threshold, rows and MB/s; then what to type next."""
    environment = """
import os, time
while not os.path.exists("go") and os.environ["ROSE_HPC_ITERATION"] == "1":
    time.sleep(0.01)
import numpy as np, rose_hpc
with rose_hpc.current_task().shard() as shard:
    shard.extend(observations=np.ones((1000, 4)), rewards=np.ones(1000))
"""
    config = projects.LIGHT["config"].replace("-S environment.py", "environment.py").replace("shard = false", "")
    projects.write_project(folder, **{**projects.LIGHT, "config": config, "environment": environment})
    shown = r"iteration 1 +stage collect +MODEL_REWARD 1, best 1 \(iteration 0\) +until MODEL_REWARD > 1.5"
    code, text = terminal("run", "config.toml", "--run-dir", "r", cwd=folder, enough=shown, then=folder / "go")
    assert code == 0
    assert re.search(shown, text)
    assert re.search(r"env_1 +━+ +\d+\.\d s", text)
    assert re.search(r"last merge: 1,000 rows, [\d.]+ kB at [\d,.]+ MB/s; 1,000 rows in all", text)
    assert re.search(r"iteration 1: MODEL_REWARD 2 +\(1,000 rows", text)
    assert "converged: MODEL_REWARD 2 > 1.5" in text
    assert "status   rose-hpc status '" in text
