"""A run that was killed, at whatever point, goes on as if nothing had happened; a finished one can be extended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import projects
import pytest

#: where the driver is killed: once the journal has such a record
POINTS = {
    "before the first record": {},
    "after the first rank": {"kind": "rank", "iteration": 0},
    "after collecting": {"kind": "stage", "stage": "collect", "iteration": 1},
    "after merging": {"kind": "stage", "stage": "merge", "iteration": 0},
    "after the update": {"kind": "stage", "stage": "update", "iteration": 1},
    "after the check": {"kind": "stage", "stage": "check", "iteration": 0},
    "between iterations": {"kind": "checkpoint", "iteration": 0},
}


def toy(folder: Path) -> Path:
    """The toy project, small; the folder."""
    config = projects.CONFIG.replace("[10, 20, 30]", "[2, 3]").replace("threshold = 25", "threshold = 15")
    projects.write_project(folder, config=config)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the toy run is when nobody kills it."""
    folder = toy(tmp_path_factory.mktemp("undisturbed"))
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return projects.essence(folder / "r")


def kill_when(driver: subprocess.Popen[str], run: Path, **wanted: Any) -> None:
    """SIGKILL the driver once the journal has such a record, and see everything end."""
    with driver:  # its end kills
        projects.wait_for(lambda: projects.records(run, **wanted) if wanted else (run / "journal.jsonl").exists())
    assert driver.returncode == -signal.SIGKILL
    projects.wait_for(lambda: not projects.processes_of(run.parent), 10)


def facts(run: Path) -> dict[str, Any]:
    """What status says."""
    answer: dict[str, Any] = json.loads(projects.rose_hpc("status", run, "--json").stdout)
    return answer


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    point: dict[str, Any], undisturbed: dict[str, Any], folder: Path
) -> None:
    """SIGKILL at any point, then `resume`: all processes gone, then the same banks, policies and rewards."""
    toy(folder)
    kill_when(projects.start("run", "config.toml", "--run-dir", "r", cwd=folder), folder / "r", **point)
    assert facts(folder / "r")["state"] == "stopped"
    done = projects.rose_hpc("resume", folder / "r", cwd="/")
    assert done.returncode == 0, done.stderr
    assert projects.essence(folder / "r") == undisturbed
    assert len(projects.records(folder / "r", "job")) in (1, 2)
    assert not list((folder / "r").glob("iter-*/shards"))


def test_many_kills_change_nothing(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Killed after nearly every record it writes, a run still ends as the undisturbed one."""
    run = toy(tmp_path) / "r"
    arguments: tuple[object, ...] = ("run", "config.toml", "--run-dir", "r")
    for count in range(4):
        known = len(projects.records(run)) if count else 0
        with projects.start(*arguments, cwd=tmp_path) as driver:
            projects.wait_for(lambda known=known: len(projects.records(run)) >= known + 3)
        assert driver.returncode == -signal.SIGKILL
        arguments = ("resume", "r")
    assert projects.rose_hpc("resume", run).returncode == 0
    assert projects.essence(run) == undisturbed
    assert facts(run)["drivers"] == 5


def test_ended_ranks_are_not_run_again(tmp_path: Path) -> None:
    """A rank that has its record keeps it: only what had none is done after a kill."""
    environment = projects.ENVIRONMENT.replace(
        "import sys", "import sys, os\n    open('ran', 'a').write(os.environ['ROSE_HPC_ENVIRONMENT'] + ' ')", 1
    )
    environment += """
    if task.environment == "env_2" and not os.path.exists("go"):
        import time
        open("waits", "w").close()
        time.sleep(999)
    """
    run = toy(tmp_path) / "r"
    projects.write_project(tmp_path, environment=environment, config=(tmp_path / "config.toml").read_text())
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=tmp_path) as driver:
        projects.wait_for((tmp_path / "waits").exists)
        kill_when(driver, run, kind="rank", environment="env_1")
    (tmp_path / "go").touch()
    assert projects.rose_hpc("resume", run, "--max-iterations", 1).returncode == 3
    assert sorted((tmp_path / "ran").read_text().split()) == ["env_1", "env_2", "env_2"]


def test_a_shard_damaged_while_nobody_looked_is_made_again(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """A shard cut short after a kill is found by the driver that merges, set aside, and its environment run again."""
    run = toy(tmp_path) / "r"
    waits = """
    import os, time
    while os.environ["ROSE_HPC_ENVIRONMENT"] == "env_2" and not os.path.exists("go"):
        time.sleep(0.01)
    """
    config = (tmp_path / "config.toml").read_text()
    projects.write_project(
        tmp_path, environment=textwrap.dedent(waits) + textwrap.dedent(projects.ENVIRONMENT), config=config
    )
    driver = projects.start("run", "config.toml", "--run-dir", "r", cwd=tmp_path)
    kill_when(driver, run, kind="rank", environment="env_1")
    shard = run / "iter-0000" / "shards" / "env_1.h5"
    os.truncate(shard, shard.stat().st_size // 2)
    (tmp_path / "go").touch()
    done = projects.rose_hpc("resume", run)
    assert done.returncode == 0, done.stderr
    assert projects.essence(run) == undisturbed
    assert [r["environment"] for r in projects.records(run, "damaged")] == ["env_1"]
    assert len(list((run / "iter-0000" / "shards").glob("env_1.h5.damaged-*"))) == 1


def test_a_torn_last_line_has_not_happened(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Half a record at the end of the journal is cut off, and what it said is done again."""
    run = toy(tmp_path) / "r"
    kill_when(projects.start("run", "config.toml", "--run-dir", "r", cwd=tmp_path), run, kind="checkpoint", iteration=0)
    with open(run / "journal.jsonl", "a") as journal:
        journal.write('{"seq":9999,"kind":"che')
    assert projects.rose_hpc("resume", run).returncode == 0
    assert projects.essence(run) == undisturbed


def light(folder: Path, **files: str) -> Path:
    """A finished light run (two iterations, rewards 1 and 2)."""
    projects.write_project(folder, **{**projects.LIGHT, **files})
    assert projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=folder).returncode == 0
    return folder / "r"


def test_a_finished_run_can_be_extended_on_record(tmp_path: Path) -> None:
    """Resuming a finished run says how it ended, with its exit code; new limits take it further, and are recorded."""
    run = light(tmp_path)
    again = projects.rose_hpc("resume", run)
    assert again.returncode == 0
    assert "converged: MODEL_REWARD 2 > 1.5" in again.stdout
    assert facts(run)["iteration"] == 2
    further = projects.rose_hpc("resume", run, "--set", "check.threshold=8.5", "--max-iterations", 3)
    assert further.returncode == 3
    assert "max_iterations" in further.stdout
    assert (facts(run)["state"], facts(run)["threshold"], facts(run)["max_iterations"]) == ("max_iterations", 8.5, 3)
    (record,) = projects.records(run, "extend")
    assert record["changes"] == ["check.threshold=8.5", "loop.max_iterations=3"]
    assert (record["threshold"], record["max_iterations"]) == (8.5, 3)
    assert projects.rose_hpc("resume", run).returncode == 3
    assert projects.rose_hpc("resume", run, "--max-iterations", 9).returncode == 0
    assert [r["reward"] for r in projects.records(run, "stage", stage="check")] == [float(k) for k in range(1, 10)]
    trace = (run / "iter-0008" / "state" / "trace").read_text().split()
    assert len(set(trace)) == 9


def test_a_run_resumes_from_anywhere_after_it_was_moved(tmp_path: Path) -> None:
    """A run is its directory: moved and resumed from another folder, its commands still run in the project's."""
    run = light(tmp_path / "project")
    moved = tmp_path / "archive of 'runs'"
    run.rename(moved)
    done = projects.rose_hpc("resume", moved, "--set", "check.threshold=2.5", cwd="/")
    assert done.returncode == 0, done.stderr
    assert facts(moved)["iteration"] == 3


def test_a_run_with_a_living_driver_is_refused(tmp_path: Path) -> None:
    """Two drivers of one run never meet: the second is told who holds it, and the first goes on."""
    environment = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.01)"
    projects.write_project(tmp_path, **{**projects.LIGHT, "environment": environment})
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=tmp_path) as driver:
        projects.wait_for(lambda: projects.records(tmp_path / "r", "job"))
        assert facts(tmp_path / "r")["state"] == "running"
        second = projects.rose_hpc("resume", "r", cwd=tmp_path)
        assert second.returncode == 1
        assert len(second.stderr.splitlines()) == 1
        assert f"process {driver.pid} on {os.uname().nodename}" in second.stderr
        rerun = projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=tmp_path)
        assert rerun.returncode == 2
        assert "is not empty" in rerun.stderr
        (tmp_path / "go").touch()
        assert driver.wait(30) == 0
    assert len(projects.records(tmp_path / "r", "job")) == 1


def test_of_two_drivers_at_once_one_wins(tmp_path: Path) -> None:
    """Started together on a stopped run, one drives and the other is refused; the journal stays sound."""
    run = light(tmp_path)
    arguments = ("resume", run, "--set", "check.threshold=5.5")
    drivers = [projects.start(*arguments, cwd=tmp_path) for _ in range(3)]
    ends = [driver.communicate(timeout=60) for driver in drivers]
    codes = sorted(driver.returncode for driver in drivers)
    assert codes[0] == 0
    assert set(codes) <= {0, 1}
    for driver, (_, errors) in zip(drivers, ends, strict=True):
        assert driver.returncode == 0 or "driven by process" in errors
    assert [r["seq"] for r in projects.records(run)] == list(range(len(projects.records(run))))
    assert [r["reward"] for r in projects.records(run, "stage", stage="check")] == [float(k) for k in range(1, 7)]


def test_what_is_not_a_run_is_said_so(tmp_path: Path) -> None:
    """A folder without a journal, and one without its configuration, are one line each."""
    nothing = projects.rose_hpc("resume", tmp_path)
    assert (nothing.returncode, len(nothing.stderr.splitlines())) == (1, 1)
    assert "is not a run" in nothing.stderr
    run = light(tmp_path)
    (run / "config.toml").unlink()
    bare = projects.rose_hpc("resume", run)
    assert (bare.returncode, len(bare.stderr.splitlines())) == (1, 1)
    assert "no config.toml" in bare.stderr


def test_a_damaged_journal_is_said_so(tmp_path: Path) -> None:
    """A flipped byte inside the journal names the line; nothing is run, nothing is cut."""
    run = light(tmp_path)
    data = (run / "journal.jsonl").read_bytes().replace(b'"reward":1.0', b'"reward":7.0')
    (run / "journal.jsonl").write_bytes(data)
    for command in ("resume", "status"):
        done = projects.rose_hpc(command, run)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "line " in done.stderr
        assert "is damaged" in done.stderr
    assert (run / "journal.jsonl").read_bytes() == data


def test_a_refused_change_is_not_written(folder: Path) -> None:
    """What would make another run of it is refused before anything is written: the run goes on as it was."""
    config = projects.write_project(folder, **projects.LIGHT)
    assert projects.rose_hpc("run", config, "--run-dir", "r", "--max-iterations", 1).returncode in (0, 3)
    (folder / "empty").mkdir()
    before = (folder / "r/config.toml").read_bytes()
    for change, words in {
        "seed=99": "a run keeps its seed",
        "name=other": "a run keeps its name",
        "environments.grid.x=[7,8]": "a run keeps its environments",
        "merge.window=0": "merge.window",
        "base=nowhere": "there is no folder",
        f"base={folder / 'empty'}": "no script 'environment.py'",
    }.items():
        done = projects.rose_hpc("resume", "r", "--set", change)
        assert done.returncode == 2, change
        assert words in done.stderr
        assert (folder / "r/config.toml").read_bytes() == before
    assert projects.rose_hpc("resume", "r", "--max-iterations", 2).returncode in (0, 3)


def test_banks_that_were_dropped_cannot_be_asked_for_again(folder: Path) -> None:
    """A wider window than retention has kept banks for is refused, naming them."""
    config = projects.write_project(folder)
    assert projects.rose_hpc("run", config, "--run-dir", "r").returncode == 0
    done = projects.rose_hpc("resume", "r", "--set", "merge.window=3", "--max-iterations", 9)
    assert done.returncode == 2
    assert "needs the banks of iterations 1, which retention has dropped" in done.stderr


def test_a_policy_that_somebody_changed_is_found(folder: Path) -> None:
    """An update does not go on from a policy that is not the one its predecessor committed."""
    config = projects.write_project(folder)
    assert projects.rose_hpc("run", config, "--run-dir", "r").returncode == 0
    weights = folder / "r/iter-0002/policy/weights.npz"
    weights.chmod(0o644)
    weights.write_bytes(b"other")
    done = projects.rose_hpc("resume", "r", "--set", "check.threshold=35")
    assert done.returncode == 1
    assert "iter-0002/policy is not what the update of its iteration left" in done.stderr.replace("'", "")


def test_a_changed_configuration_file_is_pointed_out(folder: Path) -> None:
    """A run reads its own copy; who edits the file it was made from is told so."""
    config = projects.write_project(folder, **projects.LIGHT)
    projects.rose_hpc("run", config, "--run-dir", "r", "--max-iterations", 1)
    config.write_text(config.read_text() + "\n# edited\n")
    done = projects.rose_hpc("resume", "r", "--max-iterations", 2)
    assert "has changed, and this run keeps its own copy" in done.stdout


#: rose-hpc, on a disk that refuses what ends in $REFUSED once it has got its name
REFUSING = """
    import errno, os
    from rose_hpc import publishing
    from rose_hpc.cli import main

    def refuse(path, sync=publishing.fsync_path):
        if str(path).endswith(os.environ["REFUSED"]):
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    publishing.fsync_path = refuse
    main()
"""


@pytest.mark.parametrize(
    ("refused", "message", "recorded"),
    [
        ("iter-0001", "cannot make {}/iter-0001/shards: Input/output error", 0),
        ("iter-0001/shards", "cannot bring {}/iter-0001/shards to the disk: Input/output error", 0),
        ("iter-0001/bank.h5", "cannot bring {}/iter-0001/bank.h5 to the disk: Input/output error", 3),
        ("iter-0001/policy", "cannot bring {}/iter-0001/policy to the disk: Input/output error", 4),
    ],
)
def test_what_the_disk_refuses_has_no_record(
    refused: str, message: str, recorded: int, undisturbed: dict[str, Any], folder: Path
) -> None:
    """What has its name but is not on the disk is not recorded, nor what followed; the run fails, and can go on."""
    program = folder / "refusing.py"
    toy(folder)
    program.write_text(textwrap.dedent(REFUSING))
    done = projects.run_program(program, "run", "config.toml", "--run-dir", "r", REFUSED=refused)
    run = folder / "r"
    assert done.returncode == 1
    assert message.format(run) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    kinds = [(r["kind"], r.get("stage")) for r in projects.records(run) if r.get("iteration") == 1]
    assert len(kinds) == recorded + 1, kinds
    assert kinds[-1][0] == "end"
    done = projects.rose_hpc("resume", run)
    assert done.returncode == 0, done.stderr
    assert projects.essence(run) == undisturbed
