"""The pilot engine on a real Slurm of several nodes, in both topologies.

A pilot takes a while to start: one in a job serves all that can be asked of a single one, and what must wait (for a
walltime) does so while the others run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import projects
import pytest
from slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.cluster, pytest.mark.pilot, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
PATIENT = "environments.timeout_s=600"
#: an environment that is up, and waits for the gate to be removed
GATED = """
    import os, pathlib, time
    import numpy as np
    import rose_hpc

    task = rose_hpc.current_task()
    pathlib.Path(f"up-{task.iteration}-{task.environment}").write_text(os.environ["SLURMD_NODENAME"])
    print("deadline", os.environ["ROSE_HPC_DEADLINE"])
    while pathlib.Path("gate").exists():
        time.sleep(0.05)
    with task.shard() as shard:
        for _ in range(20):
            value = task.rng.standard_normal(3).astype(np.float32)
            shard.append(
                observation=value, action=1, reward=1.0, next_observation=value, terminated=False, truncated=False
            )
"""
#: everything that one pilot can be asked, each answer into facts.json
ASK = """
    import asyncio, json, os, pathlib, signal, time
    import rose_hpc
    from radical.asyncflow import WorkflowEngine
    from rose_hpc.errors import EngineError
    from rose_hpc.execution.attempt import Attempt
    from rose_hpc.execution.pilot_reaper import descendants

    facts = {}

    async def main():
        backend = await rose_hpc.execution_backend()
        flow = await WorkflowEngine.create(backend)
        facts.update(cores=backend.cores, width=backend.width, left_s=backend.deadline - time.time())

        async def run(name, script, **fields):
            outcome, _ = await backend.run(
                Attempt(id=name, kind="command", argv=("sh", "-c", script), cwd=os.getcwd(), **fields)
            )
            return [outcome.ok, outcome.node, outcome.stdout.split(), outcome.exit_code, outcome.tail]

        meet = "touch met.{}; until [ $(ls met.* | wc -l) -ge 12 ]; do sleep 0.1; done; echo $SLURMD_NODENAME"
        facts["together"] = await asyncio.gather(*[run(f"a{i}", meet.format(i)) for i in range(12)])
        count = "mkdir busy.{0}; ls -d busy.* | wc -l; sleep 0.3; rmdir busy.{0}"
        facts["waves"] = await asyncio.gather(*[run(f"b{i}", count.format(i)) for i in range(30)])
        survive = "until test -e gone; do sleep 0.1; done; echo finished"
        facts["failing"] = await asyncio.gather(run("c0", "touch gone; exit 3"), run("c1", survive), run("c2", survive))
        facts["shapes"] = await asyncio.gather(
            *[run(f"d{cores}.{i}", "true", cores=cores) for i in range(3) for cores in (4, 1, 2)]
        )
        alone = "mkdir alone.$SLURMD_NODENAME && sleep 0.3 && rmdir alone.$SLURMD_NODENAME"
        facts["memory"] = await asyncio.gather(*[run(f"m{i}", alone, memory_mb=500) for i in range(6)])
        tell = "echo $SLURM_PROCID $SLURMD_NODENAME $SLURM_NTASKS"
        facts["program"] = await run("e", tell, ranks=6, cores=12)
        facts["program_beside"] = await asyncio.gather(
            run("f0", tell, ranks=2, cores=4), run("f1", tell, ranks=3, cores=3), run("f2", "true", cores=4)
        )
        facts["failing_program"] = await run("g", "test $SLURM_PROCID = 0 && exit 5; sleep 300", ranks=6, cores=12)

        @flow.function_task
        async def where(x):
            return x + 1, os.environ["SLURMD_NODENAME"]

        facts["function"] = await where(41)
        rl = rose_hpc.ParallelReinforcementLearner(flow, seed=0, run_dir="population", quiet=True)

        @rl.environment_task(as_executable=False)
        def environment():
            return {"learner": rose_hpc.current_task().learner, "node": os.environ["SLURMD_NODENAME"]}

        @rl.update_task(as_executable=False)
        def update(value, rate=1):
            return rate * (rose_hpc.current_task().iteration + 1)

        @rl.as_stop_criterion("N", 3, ">=", as_executable=False)
        def check(value):
            return value

        rates = [rose_hpc.LearnerConfig(update=rose_hpc.TaskConfig(kwargs={"rate": rate})) for rate in (1, 3, 2)]
        states = [state async for state in rl.start(max_iter=2, learner_configs=rates)]
        facts["population"] = [[s.learner_id, s.iteration, s.metric_value, s.learner, s.node] for s in states]
        running = asyncio.create_task(run("z", "touch last; exec sleep 300"))
        while not pathlib.Path("last").exists():
            await asyncio.sleep(0.1)
        for pid in descendants(os.getpid()):
            if pathlib.Path(f"/proc/{pid}/cmdline").read_text().startswith("rp.agent.0"):
                os.kill(pid, signal.SIGKILL)
        began = time.time()
        try:
            await running
        except EngineError as error:
            facts["death"] = [str(error), str(backend.sandbox), time.time() - began]
        await flow.shutdown()

    try:
        asyncio.run(main())
    finally:
        pathlib.Path("facts.new").write_text(json.dumps(facts))
        os.rename("facts.new", "facts.json")
"""


class Site:
    """The cluster, and commands on it as a user on its login node calls them."""

    def __init__(self, cluster: SlurmCluster) -> None:
        self.cluster = cluster
        self.env = {"SLURM_CONF": str(cluster.conf), "PATH": cluster.env["PATH"]}

    def rose_hpc(self, *arguments: object, cwd: Path) -> str:
        done = projects.rose_hpc(*arguments, cwd=cwd, **self.env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, config: Path, *options: object) -> Path:
        """A run in a job of its own; its directory."""
        out = self.rose_hpc("submit", config, "--run-dir", config.parent / "r", *options, cwd=config.parent)
        return Path(out.splitlines()[-1])

    def start(self, *arguments: object, cwd: Path, program: str | None = None) -> projects.Driver:
        return projects.start(*arguments, cwd=cwd, program=program, **self.env)

    def jobs(self, *options: str) -> list[str]:
        return self.cluster.call("squeue", "--noheader", "--format=%A", *options).stdout.split()

    def status(self, run: Path) -> dict[str, Any]:
        return dict(json.loads(self.rose_hpc("status", run, "--json", cwd=run.parent)))


@pytest.fixture(scope="module")
def site(_cluster: SlurmCluster) -> Iterator[Site]:
    yield Site(_cluster)
    _cluster.cancel_all()


@pytest.fixture(scope="module")
def short(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that will reach its walltime while the other tests run; its directory."""
    folder = tmp_path_factory.mktemp("short")
    config = projects.write_project(folder, environment=GATED)
    (folder / "gate").touch()
    return site.submit(config, "--set", "slurm.nodes=1", "--set", "slurm.walltime_min=2", "--set", PATIENT)


@pytest.fixture(scope="module")
def facts(site: Site, short: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one pilot on three nodes answers to everything."""
    folder = tmp_path_factory.mktemp("facts")
    (folder / "ask.py").write_text(textwrap.dedent(ASK))
    # what the job is told of tasks and memory contradicts what the pilot's srun is told
    script = f'#!/bin/sh\nexport SLURM_GRES=gpu:4 PATH="$PWD/bin:$PATH"\nexec {sys.executable} ask.py\n'
    (folder / "job.sh").write_text(script)
    (folder / "bin").mkdir()
    srun = shutil.which("srun", path=site.cluster.env["PATH"])
    (folder / "bin/srun").write_text(f'#!/bin/sh\necho "$*" >> {folder}/srun.txt\nexec {srun} "$@"\n')
    (folder / "bin/srun").chmod(0o755)
    tasks = ("--ntasks-per-node=4", "--mem-per-cpu=200", "--threads-per-core=1")
    options = ("--nodes=3", *tasks, "--time=5", "--no-kill", "--output=job.out")
    done = site.cluster.call("sbatch", f"--chdir={folder}", *options, str(folder / "job.sh"))
    assert done.returncode == 0, done.stderr
    projects.wait_for((folder / "facts.json").exists, 240)
    answers = json.loads((folder / "facts.json").read_text())
    assert "death" in answers, (folder / "job.out").read_text()
    answers["srun"] = (folder / "srun.txt").read_text().splitlines()
    projects.wait_for(lambda: not projects.processes_of(folder), 30)
    return dict(answers)


class TestOnePilot:
    """One pilot in a job of three nodes with four cores each."""

    def test_it_holds_the_whole_allocation_until_the_jobs_end(self, facts):
        """All cores of all nodes are its own, and it knows when the job must have ended."""
        assert (facts["cores"], facts["width"]) == (4, 12)
        assert 200 < facts["left_s"] < 300

    def test_the_jobs_own_srun_launches(self, facts):
        """The srun that is first in the job's PATH is used, once, wherever a login shell would look for one."""
        launches = [line for line in facts["srun"] if "--ntasks 3" in line]
        assert len(launches) == 1, facts["srun"]

    def test_ranks_fill_the_nodes(self, facts):
        """Twelve ranks that wait for each other are up together, four on each node, which is read back from each."""
        assert all(ok and out == [node] for ok, node, out, *_ in facts["together"])
        nodes = [node for _, node, *_ in facts["together"]]
        assert sorted(map(nodes.count, set(nodes))) == [4, 4, 4]

    def test_more_ranks_than_cores_run_in_waves(self, facts):
        """Thirty ranks on twelve cores all run, and never more than twelve at once."""
        assert [ok for ok, *_ in facts["waves"]] == [True] * 30
        assert max(int(out[0]) for _, _, out, *_ in facts["waves"]) <= 12

    def test_the_failure_of_one_rank_leaves_the_others(self, facts):
        """Ranks that outlive another's failure finish, and each has its own end."""
        assert [(ok, out, code) for ok, _, out, code, _ in facts["failing"]] == [
            (False, [], 3),
            (True, ["finished"], 0),
            (True, ["finished"], 0),
        ]

    def test_ranks_of_different_shapes_run_side_by_side(self, facts):
        """Ranks of one, two and four cores share the nodes."""
        assert [ok for ok, *_ in facts["shapes"]] == [True] * 9

    def test_a_node_holds_what_the_job_has_memory_for(self, facts):
        """Ranks that take more than half of a node's memory, as the job asked for it, have the node for themselves."""
        assert [ok for ok, *_ in facts["memory"]] == [True] * 6, facts["memory"]
        assert len({node for _, node, *_ in facts["memory"]}) == 3

    def test_a_program_of_several_ranks_gets_whole_nodes(self, facts):
        """Six ranks of two cores are one step over all three nodes, two on each, each with its own number."""
        ok, _, out, *_ = facts["program"]
        ranks = dict(zip(out[0::3], out[1::3], strict=True))
        assert (ok, sorted(ranks), set(out[2::3])) == (True, list("012345"), {"6"})
        assert sorted(map(list(ranks.values()).count, set(ranks.values()))) == [2, 2, 2]

    def test_small_programs_share_the_nodes_with_others(self, facts):
        """Programs that fit on one node run on one, at the same time as others."""
        (ok, node, out, *_), (ok3, node3, out3, *_), (beside, *_) = facts["program_beside"]
        assert (ok, out[1::3], ok3, out3[1::3], beside) == (True, [node] * 2, True, [node3] * 3, True)

    def test_the_failure_of_one_rank_ends_its_program(self, facts):
        """Ranks of one program need each other: when one fails all end, and the log says which it was."""
        ok, *_, tail = facts["failing_program"]
        assert not ok
        assert "task 0: Exited with exit code 5" in tail

    def test_functions_run_on_the_nodes(self, facts):
        """A function of asyncflow's is called in the allocation."""
        value, node = facts["function"]
        assert (value, node[0]) == (42, "n")

    def test_learners_share_the_pilot(self, facts):
        """Three learners side by side on one pilot: each goes its own way, on whatever nodes are free."""
        told = sorted(facts["population"])
        assert [entry[:4] for entry in told] == [
            [0, 0, 1.0, 0],
            [0, 1, 2.0, 0],
            [1, 0, 3.0, 1],
            [2, 0, 2.0, 2],
            [2, 1, 4.0, 2],
        ]  # fmt: skip - a table in one look
        assert all(entry[4].startswith("n") for entry in told)

    def test_the_death_of_the_pilot_is_loud(self, facts):
        """When the agent is killed, what runs fails within 30 s with an error that names the sandbox."""
        message, sandbox, seconds = facts["death"]
        assert f"see {sandbox}" in message
        assert seconds < 30


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def command_line(pid: int) -> str:
    """Empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_lost_node_costs_only_what_ran_on_it(site, short, facts, tmp_path):
    """A node dies under a run: its ranks begin anew on the others, and the banks are those of an undisturbed run.

    The nodes that are left fill each bank together.
    """
    config = projects.write_project(tmp_path, environment=GATED)
    (tmp_path / "gate").touch()
    run = site.submit(
        config,
        "--set",
        "slurm.nodes=3",
        "--set",
        "merge.way=nodes",
        "--set",
        "slurm.walltime_min=5",
        "--set",
        "slurm.exclusive=true",
        "--set",
        "environments.cores_per_rank=2",
    )
    ups = projects.wait_for(
        lambda: len(found := [path for path in tmp_path.glob("up-0-*") if path.read_text()]) == 3 and found, 90
    )
    nodes = {path.name.removeprefix("up-0-"): path.read_text() for path in ups}
    driver = json.loads((run / "owner.json").read_text())["pid"]
    batch = Path(f"/proc/{driver}/environ").read_bytes().split(b"SLURMD_NODENAME=")[1].split(b"\0")[0].decode()
    victim = max(set(nodes.values()) - {batch}, key=list(nodes.values()).count)
    daemon = site.cluster.daemons[victim]
    stepds = [parent(pid) for pid in site.cluster.processes(f"SLURMD_NODENAME={victim}")]
    site.cluster.kill_node(victim)
    daemon.wait()
    for pid in stepds:
        if command_line(pid).startswith("slurmstepd"):
            os.kill(pid, signal.SIGKILL)
    lost = projects.wait_for(lambda: projects.records(run, "attempt"), 30)
    (tmp_path / "gate").unlink()
    projects.wait_for(lambda: projects.records(run, "end"), 60)
    site.cluster.start_node(victim)
    assert projects.records(run, "end")[0]["state"] == "converged"
    merges = [record for record in projects.records(run, "stage") if record["stage"] == "merge"]
    assert {(record["way"], record["parts"]) for record in merges} == {("nodes", 2)}
    assert {r["environment"] for r in lost} <= {name for name, node in nodes.items() if node == victim}
    assert {r["reason"] for r in projects.records(run, "attempt")} == {"lost"}
    alone = projects.rose_hpc(
        "run", config, "--run-dir", "alone", cwd=tmp_path, SLURMD_NODENAME="here", ROSE_HPC_DEADLINE="4e9"
    )
    assert alone.returncode == 0, alone.stderr
    assert projects.essence(run) == projects.essence(tmp_path / "alone")


def seed_program(folder: Path, nodes: int) -> str:
    """The seed's program, its resource naming the cluster."""
    for name in ("cartpole", "seed"):
        source = ROOT / "examples" / name
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    program = folder / "run_me.py"
    was = '{"runtime": 30, "resource": "local.localhost"}'
    text = program.read_text()
    assert was in text
    program.write_text(text.replace(was, f'{{"runtime": 30, "resource": "local.slurm", "nodes": {nodes}}}'))
    return program.name


def test_the_seeds_program_converges_on_the_cluster(site, tmp_path):
    """On a login node, with `resource` naming the cluster, it acquires nodes, uses them, and gives them back."""
    with site.start(cwd=tmp_path, program=seed_program(tmp_path, 2)) as driver:
        _, errors = driver.communicate(timeout=150)
    assert driver.returncode == 0, errors
    (run,) = (tmp_path / "runs").iterdir()
    assert projects.records(run, "end")[0]["state"] == "converged"
    assert len({record["node"] for record in projects.records(run, "rank")}) == 2
    projects.wait_for(lambda: not site.jobs("--name=" + ",".join(pilots(site))), 10)


def pilots(site: Site) -> list[str]:
    """The names of the jobs that pilots have submitted."""
    names = site.cluster.call("squeue", "--noheader", "--format=%j").stdout.split()
    return [name for name in names if name.startswith("rose-hpc-")] or ["none"]


def attached(site: Site, folder: Path) -> tuple[projects.Driver, Path]:
    config = projects.write_project(folder, environment=GATED)
    (folder / "gate").touch()
    options = ("--engine", "pilot", "--run-dir", folder / "r", "--set", "slurm.walltime_min=5")
    return site.start("run", config, *options, cwd=folder), folder / "r"


def test_attached_drivers_and_their_jobs_end_together(site, tmp_path):
    """A driver that is killed takes its job with it; a job that is cancelled fails its run, loudly; nothing is left."""
    folders = [tmp_path / "killed", tmp_path / "cancelled"]
    (killed, _), (cancelled, run) = (attached(site, folder) for folder in folders)
    with killed, cancelled:
        for folder in folders:
            projects.wait_for(lambda folder=folder: (folder / "up-0-env_1").exists(), 240)
        jobs = set(site.jobs())
        killed.kill()
        projects.wait_for(lambda: len(set(site.jobs("--states=RUNNING")) & jobs) == len(jobs) - 1, 30)
        site.cluster.call("scancel", *[f"--name={name}" for name in pilots(site)])
        _, errors = cancelled.communicate(timeout=60)
    assert cancelled.returncode == 1
    # whichever is heard of first
    gone = "no supervisor of the pilot is left|the pilot on local.slurm: it ended as CANCELED"
    assert re.search(f"({gone}).*see {re.escape(str(folders[1]))}/.rose-hpc-pilot", errors), errors
    assert projects.records(run, "end")[0]["state"] == "failed"
    for folder in folders:
        projects.wait_for(lambda folder=folder: not projects.processes_of(folder), 40)


@pytest.mark.timeout(300)
def test_the_walltime_stops_a_run_that_can_go_on(site, short, facts):
    """The job ends at its walltime, which the ranks were told; nothing is left; resumed by hand, the run converges."""
    folder = short.parent
    projects.wait_for(lambda: projects.records(short, "end"), 170)
    assert site.status(short)["state"] == "stopped"
    projects.wait_for(lambda: not projects.processes_of(folder), 30)
    told = float((short / "logs" / "iter-0000-collect-env_1.log").read_text().split()[1])
    begun = projects.records(short, "job")[0]["time"]
    assert begun < told < begun + 121
    (folder / "gate").unlink()
    done = projects.rose_hpc("resume", short, "--here", cwd=folder, SLURMD_NODENAME="here", ROSE_HPC_DEADLINE="4e9")
    assert done.returncode == 0, done.stderr
