"""From the login node into a real Slurm, and back: submit, status, watch, logs, cancel, resume, doctor.

The driver in the job uses the embedded engine here: these tests are about the way into the job.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import projects
import pytest
from slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

#: an environment that waits until the file `go` is there, and says that it is up
WAITS = """
    import os, pathlib, time
    pathlib.Path("up").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.05)
"""
PROGRAM = """
    import asyncio, os, sys
    from radical.asyncflow import WorkflowEngine
    import rose_hpc

    async def main():
        asyncflow = await WorkflowEngine.create(await rose_hpc.execution_backend())
        pe = rose_hpc.ParallelExperience(asyncflow)

        @pe.environment_task(name="env_1", as_executable=False)
        async def environment():
            return {"value": 1.0}

        @pe.update_task(as_executable=False)
        async def update(*values):
            return values[0]["value"]

        @pe.as_stop_criterion(metric_name="MODEL_REWARD", threshold=0.5, as_executable=False)
        async def check(value):
            return value

        state = await pe.learn(max_iter=3)
        print("arguments", sys.argv[1:], "reward", state.metric_value, "in", os.getcwd())
        await asyncflow.shutdown()

    asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _embedded(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROSE_HPC_ENGINE", "embedded")


def submit(path: Path, *options: object, cwd: Path, run: str = "r") -> list[str]:
    """Submit into the run directory; the ids of its jobs."""
    done = projects.rose_hpc("submit", path, "--run-dir", run, "--json", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout)["jobs"])


def status(run: Path) -> dict[str, Any]:
    done = projects.rose_hpc("status", run, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def watch(run: Path) -> int:
    done = projects.rose_hpc("watch", run, timeout=200)
    assert done.stderr == "" or done.returncode, done.stderr
    return done.returncode


def waiting(folder: Path) -> Path:
    return projects.write_project(folder, **{**projects.LIGHT, "environment": WAITS})


def test_a_run_converges_in_a_job(cluster, folder):
    """Submitted with hostile variables set, from a folder no shell would survive, a run converges in its job."""
    path = projects.write_project(folder)
    hostile = {"SBATCH_PARTITION": "nope", "SBATCH_TIMELIMIT": "x", "SQUEUE_FORMAT": "%z", "SLURM_TIME_FORMAT": "%s"}
    arguments = (
        "--config",
        "generic",
        "--run-dir",
        "100%j r",
        "--set",
        "slurm.nodes=2",
        "--set",
        "slurm.walltime_min=5",
    )
    done = projects.rose_hpc("submit", path, *arguments, cwd=folder, **hostile)
    assert done.returncode == 0, done.stderr
    run = folder / "100%j r"
    assert done.stdout.splitlines()[-1] == str(run)
    assert watch(run) == 0
    facts = status(run)
    assert (facts["state"], facts["reward"], len(facts["jobs"])) == ("converged", 30.0, 1)
    (job,) = facts["jobs"]
    assert f"job {job} on 2 node(s) n[8-9]" in projects.rose_hpc("logs", run, "--job", job).stdout
    assert [record["job"] for record in projects.records(run, "job")] == [job]
    assert len(list((run / "slurm").glob("*.json"))) == 1


def test_status_while_it_runs(cluster, folder):
    """A running job is shown with its nodes, time left, running ranks and node-hours; the driver is told by files."""
    (job,) = submit(waiting(folder), "--set", "slurm.nodes=3", "--set", "slurm.walltime_min=5", cwd=folder)
    projects.wait_for((folder / "up").exists)
    facts = status(folder / "r")
    assert (facts["state"], facts["jobs"], facts["ranks"]) == ("running", [job], {"running": 1, "done": 0, "all": 1})
    (seen,) = facts["slurm"]
    assert (seen["state"], seen["nodes"], seen["node_list"]) == ("RUNNING", 3, "n[8-10]")
    assert 0 < seen["left_s"] <= 300
    text = projects.rose_hpc("status", "r", cwd=folder).stdout
    assert f"{job}: RUNNING, 3 nodes (n[8-10]), 0:0" in text
    (folder / "go").touch()
    assert watch(folder / "r") == 0
    assert status(folder / "r")["node_hours"] > 0


@pytest.mark.parametrize(
    ("settings", "words", "hint"),
    [
        (["slurm.partition=nope"], "invalid partition specified: nope", "slurm.partition"),
        (["slurm.partition=paid", "slurm.account=chemistry"], "Invalid account", "slurm.account"),
        (["slurm.partition=short", "slurm.walltime_min=30"], "time limit is invalid", "slurm.walltime_min"),
        (["slurm.nodes=9"], "Node count specification invalid", "slurm.nodes"),
        (["slurm.cpus_per_task=99"], "More processors requested than permitted", "cpus_per_task"),
        (["slurm.mem_gb=999"], "Memory specification can not be satisfied", "slurm.mem_gb"),
        (["slurm.gpus_per_node=1"], "Invalid generic resource (gres) specification", "gpus_per_node"),
        (["slurm.constraint=blue"], "Invalid feature specification", "slurm.constraint"),
        (["slurm.reservation=r"], "reservation is invalid", "slurm.reservation"),
        (['slurm.extra=["--no-such"]'], "unrecognized option", "slurm.extra"),
    ],
)
def test_a_refusal_is_one_line(cluster, folder, settings, words, hint):
    """What Slurm refuses is one line of its words and ours, exit 1, with no job and no run directory left."""
    path = projects.write_project(folder, **projects.LIGHT)
    sets = [word for setting in settings for word in ("--set", setting)]
    done = projects.rose_hpc("submit", path, "--run-dir", "r", *sets, cwd=folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert words in done.stderr
    assert hint in done.stderr
    assert not (folder / "r").exists()
    assert cluster.jobs() == []


def test_a_job_that_cannot_start_says_why(cluster, folder):
    """A job stuck in the queue is `pending` with Slurm's reason; cancelling leaves a run that is stopped."""
    path = projects.write_project(folder, **projects.LIGHT)
    (job,) = submit(path, "--set", "slurm.partition=closed", cwd=folder)
    facts = projects.wait_for(lambda: (f := status(folder / "r"))["slurm"][0]["reason"] not in ("", "Priority") and f)
    assert (facts["state"], facts["slurm"][0]["reason"]) == ("pending", "PartitionDown")
    done = projects.rose_hpc("status", "--json", cwd=folder, ROSE_HPC_RUNS=str(folder))
    assert [entry["state"] for entry in json.loads(done.stdout)] == ["pending"]
    cancelled = projects.rose_hpc("cancel", "r", cwd=folder)
    assert (cancelled.returncode, cancelled.stdout) == (0, f"cancelled job {job}\n")
    assert status(folder / "r")["state"] == "stopped"
    assert watch(folder / "r") == 130


def test_cancel_ends_one_run_of_two(cluster, folder):
    """Cancelling one of two runs side by side ends its job and every process of it; the other converges."""
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    runs = {name: submit(waiting(folder / name), cwd=folder / name)[0] for name in ("a", "b")}
    projects.wait_for(lambda: (folder / "a/up").exists() and (folder / "b/up").exists())
    done = projects.rose_hpc("cancel", folder / "a/r")
    assert (done.returncode, done.stdout) == (0, f"cancelled job {runs['a']}\n")
    assert cluster.processes(f"SLURM_JOB_ID={runs['a']}") == []
    assert cluster.jobs() == [runs["b"]]
    assert status(folder / "a/r")["state"] == "stopped"
    assert "interrupted by SIGTERM" in projects.records(folder / "a/r", "end")[0]["reason"]
    (folder / "b/go").touch()
    assert watch(folder / "b/r") == 0


def test_a_chain_goes_on_where_a_job_ended(cluster, folder):
    """When the first job of a chain is ended by Slurm, the second takes the run to its end."""
    first, second = submit(waiting(folder), "--set", "slurm.chain=2", cwd=folder)
    projects.wait_for((folder / "up").exists)
    cluster.call("scancel", first)
    (folder / "go").touch()
    assert watch(folder / "r") == 0
    assert [record["job"] for record in projects.records(folder / "r", "job")] == [first, second]


def test_the_walltime_ends_the_job_and_the_run_resumes(cluster, folder):
    """At its walltime a job ends with the run stopped; `resume` submits a new one, which converges."""
    (job,) = submit(waiting(folder), cwd=folder)
    projects.wait_for((folder / "up").exists)
    done = cluster.call("scontrol", "update", f"JobId={job}", "EndTime=now+1")
    assert done.returncode == 0, done.stderr
    projects.wait_for(lambda: status(folder / "r")["state"] == "stopped", 200)
    projects.wait_for(lambda: not cluster.jobs())
    (folder / "go").touch()
    resumed = projects.rose_hpc("resume", "r", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert watch(folder / "r") == 0
    assert len(status(folder / "r")["jobs"]) == 2


def test_slurmctld_away(cluster, folder):
    """While slurmctld is down submit fails in one line and leaves nothing; status and logs go on from the files."""
    path = waiting(folder)
    (job,) = submit(path, cwd=folder)
    projects.wait_for((folder / "up").exists)
    cluster.stop_controller()
    try:
        done = projects.rose_hpc("submit", path, "--run-dir", "s", cwd=folder, timeout=240)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert "nothing was submitted" in done.stderr
        assert not (folder / "s").exists()
        assert status(folder / "r")["state"] == "running"
        (folder / "go").touch()
        projects.wait_for(lambda: status(folder / "r")["state"] == "converged")
        assert f"job {job} on" in projects.rose_hpc("logs", "r", "--job", job, cwd=folder).stdout
    finally:
        cluster.start_controller()
    assert watch(folder / "r") == 0


def test_any_program(cluster, folder):
    """A Python program runs in a job with its own arguments and folder, from a profile, and is resumed as one."""
    (folder / "train.py").write_text(textwrap.dedent(PROGRAM))
    (folder / "site.toml").write_text("[slurm]\nnodes = 2\nwalltime_min = 5\n")
    (job,) = submit(Path("train.py"), "--config", "site.toml", "--", "--rate", "a b", cwd=folder)
    assert watch(folder / "r") == 0
    printed = (folder / f"r/slurm/{job}.out").read_text()
    assert "arguments ['--rate', 'a b'] reward 1.0 in " + str(folder) in printed
    assert projects.records(folder / "r", "run")[0]["source"] == "program"


def test_the_jobs_environment_is_set_up(cluster, folder, tmp_path):
    """setup, modules and venv are there for the tasks; scripts that leave -u or -e broken do no harm."""
    bare = projects.write_project(
        folder,
        **{
            **projects.LIGHT,
            "environment": "import os; print('seen', os.environ['LOADED'], os.environ['VIRTUAL_ENV'])",
        },
    )
    (folder / "setup.sh").write_text(
        'echo "$NOT_SET_ANYWHERE"\nfalse\nmodule() { export LOADED="${LOADED:-}[$*]"; unset -v x; echo $x; }\n'
    )
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", "v"], cwd=tmp_path, check=True
    )
    # the environment of these tests, as a user's own would have rose_hpc installed
    site = next((tmp_path / "v/lib").glob("python*")) / "site-packages"
    paths = [path for path in sys.path if path.endswith("site-packages")] + [str(Path(projects.__file__).parents[2])]
    (site / "tests.pth").write_text("\n".join(paths))
    sets = ['slurm.setup="setup.sh"', 'slurm.modules=["one/1", "two words; x"]', f'slurm.venv="{tmp_path}/v"']
    (job,) = submit(bare, *(word for setting in sets for word in ("--set", setting)), cwd=folder)
    assert watch(folder / "r") == 0, (folder / f"r/slurm/{job}.out").read_text()
    seen = projects.rose_hpc("logs", "r", "--environment", "env_1", "-i", "0", cwd=folder).stdout
    assert f"seen [load one/1][load two words; x] {tmp_path}/v" in seen


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['slurm.modules=["nope"]'], "this node has no module command"),
        (["slurm.conda=nope"], "conda"),
        (['slurm.setup="bad.sh"'], "bad.sh failed"),
    ],
)
def test_a_job_that_cannot_be_set_up_says_why(cluster, folder, settings, words):
    """When modules, conda or the setup script fail, the job's output says which, and status points there."""
    path = projects.write_project(folder, **projects.LIGHT)
    (folder / "bad.sh").write_text("return 3\n")
    (job,) = submit(path, *(word for setting in settings for word in ("--set", setting)), cwd=folder)
    projects.wait_for(lambda: not cluster.jobs())
    assert words in (folder / f"r/slurm/{job}.out").read_text()
    facts = status(folder / "r")
    assert facts["state"] == "stopped"
    assert f"job {job} ended before its driver began (FAILED" in facts["note"]


def test_doctor_asks_the_nodes(cluster, folder):
    """doctor --nodes finds three alike nodes that see the runs and each other's locks."""
    done = projects.rose_hpc("doctor", "--nodes", "3", "--json", cwd=folder, ROSE_HPC_RUNS=str(folder / "runs"))
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert set(checks["nodes"]["found"].split(", ")) == {"n8", "n9", "n10"}
    for name in ("controller", "version", "shared runs", "locks across nodes", "requeue"):
        assert checks[name]["level"] == "ok", checks[name]
    assert checks["accounting"]["found"].startswith("Slurm accounting storage is disabled")


def test_doctor_on_nodes_that_are_not_there(cluster, folder):
    """Asking more nodes than there are is a fault in Slurm's words, within the time given."""
    done = projects.rose_hpc("doctor", "--nodes", "9", "--wait", "20", cwd=folder, ROSE_HPC_RUNS=str(folder / "runs"))
    assert done.returncode == 1
    assert "0 of 9 answered" in done.stdout
    assert list((folder / "runs").iterdir()) == []
