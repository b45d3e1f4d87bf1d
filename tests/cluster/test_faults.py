"""What happens to jobs on a real Slurm, and that nothing of a run is lost by it.

The driver is on the embedded engine where no node but its own takes part. The cases of the short form are started
together, each in a job of one node, and looked at one after the other. With ROSE_HPC_TORTURE=1 every fault comes in
every stage.
"""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import projects
import pytest
from slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

TORTURE = bool(os.environ.get("ROSE_HPC_TORTURE"))
#: in front of a stage's script: it is up, and goes on only when it is let (once it has gone on, it always does)
HELD = """
    import os, pathlib, time
    pathlib.Path("up").write_text(os.environ["SLURM_JOB_ID"] + " " + os.environ.get("SLURM_RESTART_COUNT", "0"))
    while not os.path.exists("go"):
        time.sleep(0.05)
"""
#: the same, in the first job alone: whoever looks at it may come late
HELD_ONCE = """
    import os, pathlib
    last = pathlib.Path("up").read_text().split() if os.path.exists("up") else []  # empty while another writes it
    if last and last[0] != os.environ["SLURM_JOB_ID"]:
        pathlib.Path("go").touch()
"""
STAGES = ("collect", "merge", "update", "check")
#: the environment writes a shard, so that the bank shows what was counted how often
TOY = {"environment": projects.ENVIRONMENT, "update": projects.UPDATE, "check": projects.CHECK}
CONFIG = """
    name = "held"
    seed = 7
    [environments]
    command = "{python} environment.py 20"
    [[environments.list]]
    name = "env_1"
    [[environments.list]]
    name = "env_2"
    [update]
    command = "{python} update.py"
    [check]
    command = "{python} check.py"
    threshold = 15
    [loop]
    max_iterations = 5
"""


class Site:
    """The cluster, and commands on it as a user on its login node calls them."""

    def __init__(self, cluster: SlurmCluster) -> None:
        self.cluster = cluster
        self.env = {"SLURM_CONF": str(cluster.conf), "PATH": cluster.env["PATH"]}

    def rose_hpc(self, *arguments: object, cwd: Path, **env: str) -> str:
        done = projects.rose_hpc(*arguments, cwd=cwd, **self.env, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def scontrol(self, *arguments: str) -> None:
        done = self.cluster.call("scontrol", *arguments)
        assert done.returncode == 0, done.stderr


@dataclass
class Case:
    """A run that is held in a stage by its job."""

    site: Site
    folder: Path
    jobs: list[str]
    stage: str

    @property
    def run(self) -> Path:
        return self.folder / "r"

    def up(self, job: str | None = None, after: int = -1) -> int:
        """Wait until the stage is up in that job, after so many restarts; how often it has been restarted.

        Slurm restarts a job twice where its node was not ready for it the first time.
        """
        job = job or self.jobs[0]

        def restarts() -> int | None:
            if self.stage == "merge":
                driver, count = (self.drivers() or [("", 0)])[-1]
                there = self.merging.exists()
            else:
                driver, count = (self.folder / "up").read_text().split()
                there = True
            return int(count) if there and driver == job and int(count) > after else None

        count = projects.wait_for(lambda: [n for n in [restarts()] if n is not None], 180)[0]
        if self.stage == "merge":
            self.merging.unlink()
        return int(count)

    def starts_again(self, job: str) -> None:
        """Slurm lets a requeued job wait for two minutes, from when it has seen its end: ask until it runs.

        Not in the second in which its old step was ended: slurmd refuses to launch what it has been told to kill, and
        knows it by the second.
        """
        call = self.site.cluster.call
        projects.wait_for(lambda: call("squeue", "-h", "-o", "%T", "-j", job).stdout == "PENDING\n")
        projects.wait_for(lambda: not projects.processes_of(Path(f"slurmstepd: [{job}.")))
        ended = int(time.time())
        projects.wait_for(lambda: time.time() > ended + 1)

        def running() -> bool:
            call("scontrol", "update", f"JobId={job}", "StartTime=now")
            return call("squeue", "-h", "-o", "%T", "-j", job).stdout == "RUNNING\n"

        projects.wait_for(running, 180)

    @property
    def merging(self) -> Path:
        """What a merge makes before it waits."""
        return self.folder / "merging"

    def go(self) -> None:
        (self.folder / "go").touch()
        (self.folder / "merging.go").touch()

    def ends(self) -> list[tuple[str, str]]:
        return [(record["state"], record["reason"]) for record in projects.records(self.run, "end")]

    def drivers(self) -> list[tuple[str, int]]:
        """The job of each driver, and its restart."""
        return [(record["job"], record.get("restart", 0)) for record in projects.records(self.run, "job")]

    def converges(self, undisturbed: dict[str, Any]) -> None:
        """It ends as if nothing had happened, and nothing is left."""
        projects.wait_for(lambda: self.ends()[-1:] and self.ends()[-1][0] == "converged", 240)
        assert projects.essence(self.run) == undisturbed
        projects.wait_for(lambda: not set(self.jobs) & set(self.site.cluster.jobs()), 60)
        projects.wait_for(lambda: not projects.processes_of(self.folder), 60)


@pytest.fixture(scope="module")
def site(_cluster: SlurmCluster) -> Iterator[Site]:
    yield Site(_cluster)
    _cluster.cancel_all()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    projects.write_project(folder, **TOY, config=CONFIG)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return projects.essence(folder / "r")


def held(site: Site, folder: Path, stage: str, *sets: str, engine: str = "embedded", once: bool = False) -> Case:
    """Submit a run that is held in that stage, in a job of one node; ``once``: in its first job alone."""
    script = {"collect": "environment"}.get(stage, stage)
    files, env = dict(TOY), {"ROSE_HPC_ENGINE": engine}
    if stage == "merge":
        env |= {"ROSE_HPC_FAILPOINT": "bank-copied:1:WAIT", "ROSE_HPC_FAILPOINT_MARK": str(folder / "merging")}
    else:
        first = textwrap.dedent(HELD_ONCE) if once else ""
        files[script] = first + textwrap.dedent(HELD) + textwrap.dedent(TOY[script])
    projects.write_project(folder, **files, config=CONFIG)
    words = [word for each in ("slurm.cpus_per_task=4", *sets) for word in ("--set", each)]
    out = site.rose_hpc("submit", "config.toml", "--run-dir", "r", "--json", *words, cwd=folder, **env)
    return Case(site, folder, list(json.loads(out)["jobs"]), stage)


#: what the short form submits, by test: the stage, and settings
SHORT: dict[str, tuple[str, tuple[str, ...]]] = {
    "walltime": ("collect", ("slurm.chain=2", "slurm.walltime_min=1")),
    "requeue": ("update", ("slurm.requeue=true",)),
    "warning": ("check", ("slurm.chain=2",)),
}


@pytest.fixture(scope="module")
def short(site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """The jobs of the short form, side by side."""
    return {name: held_as(name, site, tmp_path_factory.mktemp(name), stage) for name, (stage, _) in SHORT.items()}


def held_as(name: str, site: Site, folder: Path, stage: str) -> Case:
    """Submit what a test of the short form looks at; walltimes go by, whoever looks."""
    return held(site, folder, stage, *SHORT[name][1], once=name == "walltime")


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A run held in the stage that the test is parametrized with: the short form's, or one of its own."""
    name, stage = request.param
    if not TORTURE:
        return dict(request.getfixturevalue("short"))[name]
    return held_as(name, request.getfixturevalue("site"), tmp_path, stage)


def in_stages(name: str) -> pytest.MarkDecorator:
    """One stage in the short form, all of them in the long one."""
    stages = STAGES if TORTURE else SHORT[name][:1]
    return pytest.mark.parametrize("case", [(name, stage) for stage in stages], ids=stages, indirect=True)


@in_stages("warning")
def test_a_job_that_is_warned_hands_over(case: Case, undisturbed: dict[str, Any]) -> None:
    """After `scancel --signal=USR2 --batch` what runs ends by itself, is recorded, and the chain's next job goes on."""
    first, second = case.jobs
    case.up()
    case.site.cluster.call("scancel", "--signal=USR2", "--batch", first)
    projects.wait_for(lambda: "SIGUSR2" in (case.run / f"slurm/{first}.out").read_text())
    case.go()
    case.converges(undisturbed)
    assert case.drivers() == [(first, 0), (second, 0)]
    assert not projects.records(case.run, "attempt")
    assert (case.ends()[0][0], "told to hand over (SIGUSR2)" in case.ends()[0][1]) == ("stopped", True)


@in_stages("requeue")
def test_a_requeued_job_goes_on(case: Case, undisturbed: dict[str, Any]) -> None:
    """`scontrol requeue`, six times in the long form: each start of the job goes on where the one before it ended."""
    (job,) = case.jobs
    times = 6 if TORTURE else 1
    restarts = -1
    for _ in range(times):
        restarts = case.up(job, restarts)
        case.site.scontrol("requeue", job)
        case.starts_again(job)
    case.up(job, restarts)
    case.go()
    case.converges(undisturbed)
    drivers = case.drivers()
    assert [driver for driver, _ in drivers] == [job] * (times + 1)
    assert sorted({restart for _, restart in drivers}) == [restart for _, restart in drivers]
    assert {state for state, _ in case.ends()[:-1]} == {"stopped"}
    assert f"job {job} on" in (case.run / f"slurm/{job}.out").read_text()
    assert (case.run / f"slurm/{job}.out").read_text().count(f"pilot.sbatch: job {job}") == times + 1


@pytest.mark.parametrize("daemon", ["slurmctld"])
def test_a_controller_that_restarts_changes_nothing(
    daemon: str, site: Site, short: dict[str, Case], tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """While jobs run and wait, slurmctld is restarted, and the node of a job is drained: chains go on all the same."""
    case = held(site, tmp_path, "collect", "slurm.chain=2")
    first, second = case.jobs
    case.up()
    node = site.cluster.call("squeue", "-h", "-o", "%N", "-j", first).stdout.strip()
    site.cluster.stop_controller()
    site.cluster.start_controller()
    site.scontrol("update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        site.cluster.call("scancel", first)
        case.up(second)
        other = site.cluster.call("squeue", "-h", "-o", "%N", "-j", second).stdout.strip()
        assert other != node
        case.go()
        case.converges(undisturbed)
    finally:
        site.scontrol("update", f"NodeName={node}", "State=RESUME")
    assert case.drivers() == [(first, 0), (second, 0)]


@in_stages("walltime")
def test_the_walltime_ends_a_stage_and_the_chain_goes_on(case: Case, undisturbed: dict[str, Any]) -> None:
    """A stage that outlasts its job is ended in order before the walltime; the second job of the chain converges."""
    first, second = case.jobs
    projects.wait_for(case.ends, 240)
    state, reason = case.ends()[0]
    assert (state, "the walltime is over, in" in reason) == ("stopped", True)
    case.go()
    case.converges(undisturbed)
    assert case.drivers() == [(first, 0), (second, 0)]
    told = (case.run / f"slurm/{first}.out").read_text()
    assert "CANCELLED" not in told, "it left before Slurm ended it"


def end_node(cluster: SlurmCluster, node: str) -> None:
    """A node is gone at once, Slurm's own processes on it first, and slurmctld has seen it."""
    cluster.lose_node(node)
    cluster.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")


@pytest.mark.skipif(not TORTURE, reason="optional extra: the long form of the campaign")
@pytest.mark.pilot
@pytest.mark.parametrize("whose", ["the driver's", "another"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_lost_node(stage: str, whose: str, site: Site, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """In every stage: a lost node costs what ran on it; if it is the driver's, the job ends, and the chain goes on."""
    case = held(site, tmp_path, stage, "slurm.chain=2", "slurm.nodes=2", engine="pilot")
    first, second = case.jobs
    case.up()
    driver = json.loads((case.run / "owner.json").read_text())["pid"]
    environ = dict(
        word.partition(b"=")[::2] for word in Path(f"/proc/{driver}/environ").read_bytes().split(b"\0") if word
    )
    head = environ[b"SLURMD_NODENAME"].decode()
    names = site.cluster.call("squeue", "-h", "-o", "%N", "-j", first).stdout.strip()
    nodes = site.cluster.call("scontrol", "show", "hostnames", names).stdout.split()
    (other,) = set(nodes) - {head}
    lost = head if whose == "the driver's" else other
    end_node(site.cluster, lost)
    try:
        case.go()
        case.converges(undisturbed)
    finally:
        site.cluster.start_node(lost)
        site.scontrol("update", f"NodeName={lost}", "State=RESUME")
    expected = [(first, 0), (second, 0)] if whose == "the driver's" else [(first, 0)]
    assert case.drivers() == expected


@pytest.mark.skipif(not TORTURE, reason="optional extra: the long form of the campaign")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_to_the_batch_script(
    number: int, stage: str, site: Site, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """`scancel --signal`, whichever: the job ends with its driver, and the chain goes on."""
    case = held(site, tmp_path, stage, "slurm.chain=2")
    first, second = case.jobs
    case.up()
    site.cluster.call("scancel", f"--signal={number}", "--batch", first)
    case.up(second)
    case.go()
    case.converges(undisturbed)
    assert case.drivers() == [(first, 0), (second, 0)]
