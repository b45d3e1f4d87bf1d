"""Configurations whose tasks are functions: called in resident processes, refused early, resumed exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import projects
import pytest

MODULE = """
    import os, signal, sys, time
    import rose_hpc

    print("imported", file=sys.stderr)

    def environment(scale):
        task = rose_hpc.current_task()
        print("scale", scale, task.parameters)
        with task.shard() as shard:
            shard.append(observation=task.rng.random(2), reward=scale * task.rng.random())
        return {"scale": scale, "number": task.rng.random()}

    async def update(*values, rate=0.5):
        task = rose_hpc.current_task()
        total = sum(value["number"] for value in values) + float(task.bank()["rewards"].sum())
        (task.policy / "weights").write_text(repr(rate * total))
        return {"loss": total}

    def check(value, **parameters):
        task = rose_hpc.current_task()
        assert value["loss"] > 0 and not parameters
        if task.iteration == 1 and os.environ.get("KILL") and not os.path.exists("killed"):
            open("killed", "w").close()
            end = time.monotonic() + 30
            while open(f"{os.environ['ROSE_HPC_RUN']}/journal.jsonl").read().count('"stage":"update"') < 2:
                assert time.monotonic() < end  # the record follows once the policy is on the disk
            os.kill(int(os.environ["KILL_PID"]), signal.SIGKILL)
        return {"metric_value": task.iteration + 1}
"""
CONFIG = """
    name = "functions"
    seed = 11
    [environments]
    function = "steps:environment"
    [environments.grid]
    scale = [0.5, 2.0]
    [update]
    function = "steps:update"
    [check]
    function = "steps:check"
    threshold = 2.5
"""


#: modules of the standard library and ours, under whose names a user may have something else
TAKEN = ("json", "queue", "selectors", "socket", "zmq", "rose_hpc", "numpy", "h5py")


def write(folder: Path, module: str = MODULE, config: str = CONFIG) -> Path:
    path = projects.write_project(folder, config=config, steps=module)
    for name in ("environment", "update", "check"):
        (folder / f"{name}.py").unlink()
    return path


def test_a_run_of_functions(folder: Path) -> None:
    """Parameters come as keywords, values go on, all of it is in the journal; every process imports once."""
    write(folder)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    run = folder / "r"
    ranks = projects.records(run, "rank", environment="env_2")
    assert [rank["value"]["scale"] for rank in ranks] == [2.0] * 3
    assert all(rank["max_rss_mb"] > 1 for rank in ranks)
    assert [r["reward"] for r in projects.records(run, "stage", stage="check")] == [1.0, 2.0, 3.0]
    assert "scale 2.0 {'scale': 2.0}" in (run / "logs" / "iter-0001-collect-env_2.log").read_text()
    imports = sum(log.read_text().count("imported") for log in (run / "logs").iterdir())
    assert imports <= 2, "as many as run at once"
    assert str(folder / "steps.py") in projects.records(run, "scripts")[-1]["digests"]


def test_a_killed_run_of_functions_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Values come back from the journal as they were, and nothing that had a record is called again."""
    for name in ("calm", "killed"):
        write(tmp_path / name)
    assert projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=tmp_path / "calm").returncode == 0
    script = 'import os, sys; os.environ["KILL_PID"] = str(os.getpid()); from rose_hpc.cli import main; main()'
    killer = tmp_path / "killed" / "killer.py"
    killer.write_text(script)
    done = projects.run_program(killer, "run", "config.toml", "--run-dir", "r", KILL="1")
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = tmp_path / "killed" / "r"
    assert [r["iteration"] for r in projects.records(run, "stage", stage="update")] == [0, 1]
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert projects.essence(run) == projects.essence(tmp_path / "calm" / "r")
    assert len(projects.records(run, "stage", stage="update", iteration=1)) == 1


FAULTS = {
    "missing module": ("steps:update", "step:update", "update.function: there is no module 'step' in"),
    "missing function": ("steps:check", "steps:chek", "steps.py has no 'chek'; did you mean 'check'?"),
    "parameter": ("scale =", "scal =", "environments.function: steps:environment is called with scal=... and does not"),
    "both": ('function = "steps:update"', 'function = "steps:update"\ncommand = "true"', "beside a command"),
    "neither": ('function = "steps:update"', "timeout_s = 1", "update: has no command; add command"),
    "form": ("steps:update", "steps.update", 'must be of the form "module:function"'),
    "stdlib": ("steps:update", "queue:update", "'queue', which is a module of Python's own"),
    "memory of a command": (
        'function = "steps:update"',
        'command = "true"\nmax_rss_gb = 1',
        "update.max_rss_gb: is for functions",
    ),
    "ranks": ('function = "steps:update"', 'function = "steps:update"\nranks = 2', "a function runs in one"),
}


def test_what_can_be_seen_is_refused_by_plan(tmp_path: Path) -> None:
    """Each before anything runs, in one line that names the key."""
    from rose_hpc.cli.plan import plan
    from rose_hpc.errors import RoseHpcError

    for name, (old, new, message) in FAULTS.items():
        assert old in CONFIG, name
        config = write(tmp_path / name, config=CONFIG.replace(old, new))
        with pytest.raises(RoseHpcError) as caught:
            plan(config)
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value), name
    facts = plan(write(tmp_path / "good"))
    assert [facts["update"]["function"], facts["environments"][1]["shown"]] == [
        "steps:update",
        "steps:environment(scale=2.0)",
    ]


def test_what_only_running_tells_names_the_function(tmp_path: Path) -> None:
    """A library that is missing, and a value that no record can hold, end the run in one line; mended, it goes on."""
    write(tmp_path, MODULE.replace("import os, signal", "import no_such_library, os, signal"))
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 1
    assert "it cannot be called: importing steps raised ModuleNotFoundError: No module named" in done.stderr
    for module, code, message in (
        (MODULE.replace('{"loss": total}', "{1, 2}"), 1, "the update failed in iteration 0: it returned a set that no"),
        (MODULE.replace("task.iteration + 1}", 'float("inf")}'), 1, "the check failed in iteration 0: it returned a"),
        (MODULE, 0, f"warning: {os.fspath(tmp_path / 'steps.py')} changed"),
    ):
        write(tmp_path, module)
        done = projects.rose_hpc("resume", "r", cwd=tmp_path)
        assert (done.returncode, message in done.stdout + done.stderr) == (code, True), done.stderr


def test_what_lies_in_the_folder_is_not_taken_for_ours(tmp_path: Path) -> None:
    """A run is started where files have the names of modules: our processes import their own."""
    folder = tmp_path / "folder"
    path = projects.write_project(tmp_path / "project")
    folder.mkdir()
    for name in TAKEN:
        (folder / f"{name}.py").write_text("raise SystemExit('imported by mistake: ' + __name__)\n")
    command = [sys.executable, "-P", "-m", "rose_hpc", "run", path, "--run-dir", tmp_path / "run"]  # as rose-hpc does
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert [record["iteration"] for record in projects.records(tmp_path / "run", "stage", stage="merge")] == [0, 1, 2]
    command = [sys.executable, "-P", "-m", "rose_hpc", "inspect", str(tmp_path / "run" / "iter-0002" / "bank.h5")]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stderr
