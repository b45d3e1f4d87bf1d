"""Which engine, and what pilot: decided from what was asked for and where we are, with nothing started."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from rose_hpc.config import load_config
from rose_hpc.config_models import Slurm
from rose_hpc.errors import UsageError
from rose_hpc.execution import pilot_slurm, select
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.client import Answer, Client
from rose_hpc.execution.mpi import launch
from rose_hpc.execution.pilot_resources import PilotPlan, host_environment, plan_pilot
from rose_hpc.execution.pilot_task_plan import plan_task
from rose_hpc.execution.pool import Pool, plan_request
from rose_hpc.execution.select import choose_engine, config_resources, execution_backend, pilot_resources
from rose_hpc.execution.slots import Gpus, Request, Slots
from rose_hpc.machine import Shape

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_JOB_CPUS_PER_NODE": "4(x2),8",
    "SLURM_JOB_END_TIME": "4000000000",
}


@pytest.fixture(autouse=True)
def _plain_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def answers(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Have commands of Slurm's print these texts."""
    for name, text in commands.items():
        (folder / f"{name}.txt").write_text(text)
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "$@" > {folder}/{name}.args\ncat {folder}/{name}.txt\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("asked", "environ", "engine"),
    [
        ("auto", {}, "embedded"),
        ("auto", {"SLURM_JOB_ID": "7"}, "pilot"),
        ("auto", {"SLURM_JOB_ID": "7", "ROSE_HPC_ENGINE": "embedded"}, "embedded"),
        ("auto", {"ROSE_HPC_ENGINE": "pilot"}, "pilot"),
        ("embedded", {"SLURM_JOB_ID": "7"}, "embedded"),
        ("pilot", {}, "pilot"),
    ],
)
def test_the_engine_is_chosen(asked, environ, engine):
    """What is asked for, else ROSE_HPC_ENGINE, else the pilot inside a Slurm job and the embedded engine elsewhere."""
    assert choose_engine(asked, environ) == engine


def test_another_engine_is_refused():
    """A word that names no engine is refused with those there are."""
    with pytest.raises(UsageError, match="'dask'; use embedded or pilot"):
        choose_engine("dask", {})


@pytest.mark.parametrize(
    ("asked", "environ", "label"),
    [
        ({}, {"PATH": "/nowhere"}, "local.localhost"),
        ({}, JOB, "local.slurm"),
        ({"resource": "local.localhost"}, JOB, "local.localhost"),
        ({"resource": "nersc.perlmutter"}, {}, "nersc.perlmutter"),
    ],
)
def test_the_resource_follows_from_where_we_are(asked, environ, label):
    """A label that is given stays; else it is our job's allocation, or without Slurm this host."""
    assert pilot_resources(asked, environ)["resource"] == label


def test_with_slurm_here_a_job_is_acquired(tmp_path, monkeypatch):
    """On a login node a pilot without a label is a job of the Slurm that is there."""
    answers(tmp_path, monkeypatch, sbatch="")
    assert pilot_resources({}, {"PATH": str(tmp_path)})["resource"] == pilot_slurm.LABEL


def test_a_label_of_radical_pilots_own_stays_as_it_is():
    """Such a pilot gets nodes, queue, project and walltime of [slurm] in its own words, and no description of ours."""
    slurm = {"nodes": 4, "partition": "gpu", "account": "m1", "walltime_min": 90}
    known = pilot_resources({"resource": "nersc.perlmutter", "slurm": slurm}, {})
    assert {key: known[key] for key in ("nodes", "queue", "project", "runtime")} == {
        "nodes": 4,
        "queue": "gpu",
        "project": "m1",
        "runtime": 90,
    }
    assert "resource_config" not in known
    inside = pilot_resources({"resource": "nersc.perlmutter"}, JOB)
    assert (inside["access_schema"], inside["nodes"], "resource_config" in inside) == ("interactive", 3, False)
    assert "nodes" not in pilot_resources({"resource": "nersc.perlmutter", "cores": 64}, {})


def test_inside_a_job_the_pilot_is_the_whole_allocation():
    """All nodes with as many cores as the smallest has, beyond the job's end, which Slurm itself keeps."""
    known = pilot_slurm.slurm_resources({"resource": pilot_slurm.LABEL}, JOB)
    assert (known["nodes"], known["access_schema"], known["deadline"]) == (3, "interactive", 4e9)
    assert known["resource_config"]["cores_per_node"] == 4
    assert known["runtime"] * 60 > 4e9 - time.time()
    assert plan_pilot(known, host_cores=2, folder=Path("/x")).forks is False


def test_a_job_without_nodes_is_refused():
    """A SLURM_JOB_ID alone is no allocation that could be used."""
    with pytest.raises(UsageError, match="no Slurm job whose nodes are known"):
        pilot_slurm.inside({"SLURM_JOB_ID": "7"})


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("JobId=7 EndTime=2030-01-02T03:04:05 Deadline=N/A", (2030, 1, 2, 3, 4, 5)),
        ("JobId=7 EndTime=Unknown", None),
        ("", None),
    ],
)
def test_scontrol_tells_the_jobs_end(tmp_path, monkeypatch, text, end):
    """Where Slurm sets no SLURM_JOB_END_TIME, scontrol is asked once; an end it does not know is none."""
    answers(tmp_path, monkeypatch, scontrol=text)
    expected = None if end is None else time.mktime((*end, 0, 0, -1))
    assert pilot_slurm.job_end({"SLURM_JOB_ID": "7"}) == expected
    assert (tmp_path / "scontrol.args").read_text() == "show job --oneliner 7\n"


def attached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **slurm: Any) -> dict[str, Any]:
    answers(tmp_path, monkeypatch, sinfo="2 main*\n8 main*\n1 tiny\n")
    return pilot_slurm.slurm_resources({"slurm": {"walltime_min": 30, **slurm}}, {})


def test_what_radical_pilot_has_no_words_for_reaches_sbatch(tmp_path, monkeypatch):
    """QOS, GPUs, memory and the rest go to sbatch as its variables; the user's own settings do not; nothing is lost."""
    known = attached(
        monkeypatch,
        tmp_path,
        **{"nodes": 2, "partition": "main", "account": "m1", "qos": "debug", "gpus_per_node": 4, "mem_gb": 1.5},
        exclusive=True,
        constraint="a100",
        reservation="r",
        cpus_per_task=4,
        ntasks_per_node=2,
    )
    assert (known["nodes"], known["queue"], known["project"], known["runtime"]) == (2, "main", "m1", 30)
    assert known["resource_config"]["cores_per_node"] == 8
    plan = plan_pilot(known, host_cores=2, folder=tmp_path)
    user = {
        "SBATCH_QOS": "users",
        "SBATCH_PARTITION": "nope",
        "SQUEUE_FORMAT": "%z",
        "SLURM_CONF": "/c",
        "PATH": "/bin",
        "MAKEOVERRIDES": "${-*-command-variables-*-}",
        "BASH_FUNC_module%%": "() { eval $1\n}",
    }
    environ = host_environment(plan, tmp_path, user)
    assert "MAKEOVERRIDES" not in environ  # radical.pilot's scripts would fail at it
    assert environ["BASH_FUNC_module%%"] == user["BASH_FUNC_module%%"]
    (name,) = [word.removeprefix("--name=") for word in plan.release if word.startswith("--name=")]
    assert {key: value for key, value in environ.items() if key.startswith(("SBATCH", "SQUEUE", "SLURM"))} == {
        "SBATCH_JOB_NAME": name,
        "SBATCH_NO_KILL": "set",
        "SBATCH_NO_REQUEUE": "set",
        "SBATCH_QOS": "debug",
        "SBATCH_CONSTRAINT": "a100",
        "SBATCH_RESERVATION": "r",
        "SBATCH_EXCLUSIVE": "exclusive",
        "SBATCH_GPUS_PER_NODE": "4",
        "SBATCH_MEM_PER_NODE": "1536M",
        "SLURM_CONF": "/c",
    }


def test_cores_of_a_node_are_those_of_the_smallest(tmp_path, monkeypatch):
    """Where [slurm] does not say, sinfo does: of the partition's nodes, or the default one's, the smallest counts."""
    assert attached(monkeypatch, tmp_path)["resource_config"]["cores_per_node"] == 2
    assert attached(monkeypatch, tmp_path, partition="tiny")["resource_config"]["cores_per_node"] == 1
    assert (tmp_path / "sinfo.args").read_text() == "--noheader --Node --format=%c %P --partition=tiny\n"


@pytest.mark.parametrize(
    ("slurm", "words"),
    [
        ({"extra": ["--x"]}, r"slurm.extra; use `rose-hpc submit`"),
        ({"mail_user": "me"}, "slurm.mail_user"),
        ({"walltime_min": None}, "add slurm.walltime_min"),
        ({"nods": 3}, "slurm.nods of the pilot"),
    ],
)
def test_what_a_pilots_job_cannot_have_is_refused(tmp_path, monkeypatch, slurm, words):
    """A setting that would be dropped in silence is refused by name, before anything is submitted."""
    with pytest.raises(UsageError, match=words):
        attached(monkeypatch, tmp_path, **slurm)


def test_without_an_answer_of_sinfo_cores_must_be_given(tmp_path, monkeypatch):
    """Cores that nobody knows are asked for."""
    answers(tmp_path, monkeypatch, sinfo="")
    with pytest.raises(UsageError, match="give cpus_per_task"):
        pilot_slurm.cores_per_node(Slurm())


def test_a_configuration_says_it_in_the_pilots_words(tmp_path):
    """[pilot] and [slurm] reach the pilot whole, minutes rounded up."""
    (tmp_path / "c.toml").write_text(
        '[environments]\ncommand="true"\n[[environments.list]]\nname="a"\n[update]\ncommand="true"\n'
        "[loop]\nmax_iterations=1\n"
        '[pilot]\nresource="local.slurm"\nruntime_min=1.5\n[slurm]\nnodes=3\npartition="main"\n'
    )
    assert config_resources(load_config(tmp_path / "c.toml")) == {
        "resource": "local.slurm",
        "access_schema": None,
        "runtime": 2,
        "slurm": {"nodes": 3, "partition": "main"},
    }


def test_steps_survive_a_lost_node_and_stand_others_beside_them():
    """Tasks that srun starts outlive a lost node, and share their cores with programs of several ranks."""
    plan = PilotPlan("local.slurm", 5, nodes=2, forks=False)
    task = {"uid": "t", "executable": "true"}
    pre = plan_task(task, pilot=plan, environ={}, folder=Path("/x")).pre_launch
    assert pre[-1] == "export SLURM_NO_KILL=set SLURM_OVERLAP=1"
    assert plan_task(task, pilot=PilotPlan("local.localhost", 5), environ={}, folder=Path("/x")).pre_launch == ()


def test_the_jobs_nodes_are_named_by_slurm(tmp_path):
    """The agent reads names that Slurm's own scontrol of the job's PATH wrote out; its own PATH stays."""
    odd = tmp_path / "it's a $HOME"
    odd.mkdir()
    (odd / "scontrol").write_text("#!/bin/sh\nprintf 'n8\\nn9\\nn10\\n'\n")
    (odd / "scontrol").chmod(0o755)
    (line,) = pilot_slurm.in_login_shell(f"{odd}:/nowhere")["pre_bootstrap_0"]
    (script,) = shlex.split(line)
    told = f'{script}; echo "$SLURM_NODELIST"; echo "$PATH"'
    out = subprocess.run(["bash", "-c", told], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == ["n8,n9,n10", os.environ["PATH"]]


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_what_sbatch_was_told_of_tasks_is_not_told_to_srun(shell):
    """The job's own variables are no options of the pilot's srun; it still finds the job, whatever shell is used."""
    plan = PilotPlan("local.slurm", 5, nodes=2, forks=False)
    pre = plan_task({"uid": "t", "executable": "true"}, pilot=plan, environ={}, folder=Path("/x")).pre_launch
    job = {"SLURM_JOB_ID": "7", "SLURM_CONF": "/etc/slurm.conf"}
    options = {"SLURM_NTASKS_PER_NODE": "4", "SLURM_TRES_PER_TASK": "cpu:4", "SLURM_CPUS_PER_TASK": "1"}
    env = {**job, **options, "PATH": os.environ["PATH"], "TEXT": "two\nSLURM_LINES=1"}
    for given, left in ((env, env.keys() - options.keys()), (job | {"PATH": env["PATH"]}, {*job, "PATH"})):
        script = "set -e\n" + " || exit 9\n".join(pre) + "\nenv -0"
        out = subprocess.run([shell, "-c", script], env=given, capture_output=True, text=True, check=True).stdout
        names = {line.partition("=")[0] for line in out.split("\0") if line}
        assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == left | {"SLURM_NO_KILL", "SLURM_OVERLAP"}


def test_a_submitted_program_gets_the_pilot_of_its_profile(tmp_path, monkeypatch):
    """`[pilot]` of the profile it was submitted with is the default of `execution_backend()`, and arguments win."""
    made: list[dict[str, Any]] = []

    async def backend() -> None: ...

    def make(engine: str, resources: dict[str, Any]) -> Any:
        made.append(resources)
        return backend()

    monkeypatch.setattr(select, "make_backend", make)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/site.toml").write_text('[pilot]\nresource = "nersc.perlmutter"\nruntime_min = 20\n')
    monkeypatch.setenv("ROSE_HPC_ENGINE", "pilot")
    asyncio.run(execution_backend({"runtime": 5}))
    monkeypatch.setenv("ROSE_HPC_RUN", str(tmp_path))
    asyncio.run(execution_backend({"runtime": 5}))
    asyncio.run(execution_backend())
    assert made[0] == {"runtime": 5}
    assert [(known["resource"], known["runtime"]) for known in made[1:]] == [
        ("nersc.perlmutter", 5),
        ("nersc.perlmutter", 20),
    ]


@pytest.mark.parametrize(
    ("ranks", "cores", "nodes", "request_"),
    [
        (1, 3, [4, 4], Request(3)),
        (4, 4, [4, 4], Request(4)),  # ranks that one node holds share it with others
        (6, 12, [4, 4, 4], Request(4, 3)),
        (3, 6, [4, 4, 4], Request(4, 2)),
        (5, 5, [4, 4, 4], Request(3, 2)),  # spread evenly: 3 and 2, not 4 and 1
        (8, 8, [2, 4, 4, 4], Request(4, 2)),  # not where fewer fit
    ],
)
def test_ranks_are_spread_over_whole_nodes(ranks, cores, nodes, request_):
    """Ranks that one node cannot hold take the fewest whole nodes that do, evenly."""
    attempt = Attempt(id="a", kind="command", ranks=ranks, cores=cores)
    assert plan_request(attempt, lambda: [Shape(count) for count in nodes]) == request_


@pytest.mark.parametrize(
    ("nodes", "request_"),
    [
        ([Shape(8, 32_000), Shape(8, 32_000), Shape(8, 64_000)], Request(6, memory_mb=61_440)),
        ([Shape(8, 32_000)] * 3, Request(3, 2, memory_mb=30_720)),
        ([Shape(2, 32_000), Shape(8, 32_000), Shape(8, 32_000)], Request(3, 2, memory_mb=30_720)),
        ([Shape(2, 32_000)] * 3, Request(2, 3, memory_mb=20_480)),
        ([Shape(8, 24_000)] * 4 + [Shape(2, 64_000)], Request(2, 3, memory_mb=20_480)),  # nobody has all of it
        ([Shape(8)] * 2, Request(6, memory_mb=61_440)),  # nobody knows
        ([], Request(6, memory_mb=61_440)),  # nobody has joined yet
    ],
)
def test_ranks_are_spread_by_their_memory_too(nodes, request_):
    """Ranks for whose memory one node is too small take as few as have it."""
    attempt = Attempt(id="a", kind="command", ranks=6, cores=6, memory_mb=61_440)
    assert plan_request(attempt, lambda: nodes) == request_


@pytest.mark.parametrize(
    ("attempt", "nodes", "words"),
    [
        ({"ranks": 2, "cores": 10}, [Shape(4)] * 2, "2 ranks of 5 cores, spread evenly, and the 2 nodes hold 0 \\+ 0;"),
        ({"ranks": 32, "cores": 32}, [Shape(8)] * 3, "32 ranks of 1 cores, spread evenly, and the 3 nodes hold 8 "),
        ({"ranks": 2, "cores": 2, "memory_mb": 4096, "gpus": 2.0}, [Shape(8, 1024)], "2 GB of memory, 1 GPUs, spread"),
    ],
)
def test_ranks_that_no_nodes_hold_are_refused(attempt, nodes, words):
    """The refusal names the ranks, what each takes, and how many each node holds."""
    with pytest.raises(UsageError, match=words):
        plan_request(Attempt(id="a", kind="command", **attempt), lambda: nodes)


class Node(Client):
    """A supervisor that has done at once what it is told, and says where that was."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.node = name

    async def run(self, attempt: Attempt, *_: Any) -> Answer:
        return Outcome(attempt.id, ok=True, node=" ".join(attempt.nodes)), b""


def test_a_program_whose_nodes_are_lost_is_spread_anew():
    """Who waits for two large nodes, of which one is lost, gets four small ones."""

    async def main():
        pool = Pool()
        clients = {name: Node(name) for name in "abcdef"}
        for name, client in clients.items():
            pool.add(client, 8, memory_mb=65_536 if name in "ab" else 32_768)
        other = await pool.slots.take(Request(8, 6))
        attempt = Attempt(id="p", kind="command", ranks=8, cores=8, memory_mb=8 * 15_360)
        running = asyncio.create_task(pool.run(attempt))
        await asyncio.sleep(0)
        pool.remove(clients["a"])
        pool.slots.give(other)
        outcome, _ = await asyncio.wait_for(running, 10)
        assert outcome.node == "b c d e"

    asyncio.run(main())


def test_ranks_are_spread_by_their_gpus_too():
    """Four ranks with a GPU each take two nodes that have two."""
    attempt = Attempt(id="a", kind="command", ranks=4, cores=4, gpus=4.0)
    assert plan_request(attempt, lambda: [Shape(8, gpus=2)] * 3) == Request(2, 2, gpus=2.0)
    assert plan_request(attempt, lambda: [Shape(8, gpus=4)]) == Request(4, gpus=4.0)


def test_shares_of_gpus_add_up():
    """Twenty-five ranks of 0.28 GPUs, which are a little more than seven to a computer, get seven."""
    attempt = Attempt(id="a", kind="command", ranks=25, cores=25, gpus=25 * 0.28)
    assert attempt.gpus > 7

    async def main():
        slots = Slots()
        slots.add("node", 32, list("0123456"))
        grant = await asyncio.wait_for(slots.take(plan_request(attempt, slots.shapes)), 10)
        assert grant.gpus == tuple("0123456")

    asyncio.run(main())


def test_gpus_are_chosen_where_they_fit_best():
    """Whole GPUs are whole; shares go to the fullest that has room; what is given back is there again."""
    gpus = Gpus(["a", "b"])
    assert gpus.choose(0.5) == (("a",), 0.5)
    gpus.change(["a"], -0.5)
    assert gpus.choose(0.5) == (("a",), 0.5)
    assert gpus.choose(1) == (("b",), 1.0)
    assert gpus.choose(2) is None
    assert gpus.choose(0.7) == (("b",), 0.7)
    gpus.change(["a"], 0.5)
    assert gpus.choose(2) == (("a", "b"), 1.0)
    assert gpus.choose(0) == ((), 0.0)


def test_programs_are_started_by_what_is_there(tmp_path, monkeypatch):
    """In a step of Slurm's by srun, else by mpiexec on this host; where there is neither, it is said."""
    answers(tmp_path, monkeypatch, mpiexec="")
    attempt = Attempt(id="a", kind="command", argv=("solver",), ranks=2, cores=2, nodes=["n1"])
    argv, env = launch(attempt, {"PATH": str(tmp_path), "SLURM_NTASKS": "9", "SLURM_JOB_ID": "7"})
    assert argv == [str(tmp_path / "mpiexec"), "-n", "2", "solver"]
    assert "SLURM_NTASKS" not in env
    with pytest.raises(FileNotFoundError, match="2 ranks need srun or mpiexec"):
        launch(attempt, {"PATH": "/nowhere"})
