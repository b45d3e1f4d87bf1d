"""A run branches off at an old checkpoint: unchanged it does the same again, and its source is not touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import programs
import projects
import pytest

CONFIG = (
    projects.CONFIG.replace("[10, 20, 30]", "[2, 3]")
    .replace("threshold = 25", "threshold = 35")
    .replace("[loop]", "[merge]\nwindow = 2\n[retention]\nbanks = 3\n[loop]")
)


def contents(run: Path) -> dict[str, str]:
    """Everything in a run, by name."""
    files = (path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}  # noqa: S324 - no secret


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four iterations."""
    config = projects.write_project(tmp_path_factory.mktemp("project") / "it's", config=CONFIG)
    done = projects.rose_hpc("run", config, "--run-dir", config.parent / "r")
    assert done.returncode == 0, done.stderr
    return config.parent / "r"


@pytest.mark.parametrize("iteration", [0, 2, 3])
def test_an_unchanged_branch_equals_its_source(run: Path, iteration: int, tmp_path: Path) -> None:
    """From any checkpoint whose policy and window are there, the same banks, policies and rewards come again."""
    before = contents(run)
    done = projects.rose_hpc("resume", run, "--from-iteration", iteration, "--run-dir", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert projects.essence(tmp_path / "new") == projects.essence(run)
    assert contents(run) == before
    (first,) = projects.records(tmp_path / "new", "run")
    assert first["branch"] == {"run": str(run), "iteration": iteration}
    with_files = {path.name for path in (tmp_path / "new" / "logs").iterdir()}
    assert {name[:9] for name in with_files} == {f"iter-{k:04d}" for k in range(iteration, 4)}, "only these were done"
    facts = json.loads(projects.rose_hpc("status", tmp_path / "new", "--json").stdout)
    assert (facts["state"], facts["iteration"], facts["drivers"]) == ("converged", 4, 1)
    assert projects.rose_hpc("inspect", tmp_path / "new", "--check").returncode == 0


def test_a_changed_branch_goes_its_own_way(run: Path, tmp_path: Path) -> None:
    """Other limits are the branch's alone, on record; what it took over stays what it was."""
    new = tmp_path / "new"
    done = projects.rose_hpc("resume", run, "--from-iteration", 3, "--run-dir", new, "--set", "check.threshold=45")
    assert done.returncode == 0, done.stderr
    rewards = [r["reward"] for r in projects.records(new, "stage", stage="check")]
    assert rewards == [10.0, 20.0, 30.0, 40.0, 50.0]
    (extended,) = projects.records(new, "extend")
    assert extended["changes"] == ["check.threshold=45"]
    assert json.loads(projects.rose_hpc("status", run, "--json").stdout)["threshold"] == 35


def test_a_branch_of_a_living_run(tmp_path: Path) -> None:
    """The source may be driven meanwhile."""
    environment = """
        import os, time
        second = os.environ["ROSE_HPC_ITERATION"] == "1" and os.environ["ROSE_HPC_RUN"].endswith("/r")
        while second and not os.path.exists("go"):
            time.sleep(0.01)
    """
    config = projects.write_project(tmp_path, **{**projects.LIGHT, "environment": environment})
    with projects.start("run", config, "--run-dir", "r", cwd=tmp_path) as driver:
        projects.wait_for(lambda: projects.records(tmp_path / "r", "checkpoint"))
        done = projects.rose_hpc("resume", tmp_path / "r", "--from-iteration", 1, "--run-dir", tmp_path / "new")
        assert done.returncode == 0, done.stderr
        (tmp_path / "go").touch()
        assert driver.wait(60) == 0
    assert projects.essence(tmp_path / "new") == projects.essence(tmp_path / "r")


def test_a_program_branches_too(folder: Path) -> None:
    """A Python program goes on from the branch's checkpoint, with the configuration it had set by then."""
    body = """
        async for state in pe.start():
            tell(state)
            pe.set_next_config(LearnerConfig(environment=TaskConfig(kwargs={"scale": 2.0 + state.iteration})))
    """
    program = programs.write(folder, programs.FUNCTIONS.replace("THRESHOLD", "3.5"), body)
    assert programs.run(program).returncode == 0
    run = programs.run_of(folder)
    done = projects.rose_hpc("resume", run, "--from-iteration", 2, "--run-dir", folder / "new")
    assert done.returncode == 0, done.stderr
    assert [state["iteration"] for state in programs.states(done)] == [2, 3]
    assert projects.essence(folder / "new") == projects.essence(run)


def test_what_cannot_be_branched_is_refused(run: Path, tmp_path: Path) -> None:
    """A checkpoint that is gone or was never reached, a directory in use, half of the options: one line each."""
    for arguments, words in {
        ("--from-iteration", 5, "--run-dir", tmp_path / "a"): "choose one of 0, 2-4",
        ("--from-iteration", 1, "--run-dir", tmp_path / "a"): "a bank of its window is not there",
        ("--from-iteration", 2): "--from-iteration and --run-dir go together",
        ("--run-dir", tmp_path / "a"): "--from-iteration and --run-dir go together",
        ("--from-iteration", 2, "--run-dir", run): "is not empty",
        ("--from-iteration", 2, "--run-dir", tmp_path / "a", "--set", "seed=9"): "a run keeps its seed",
    }.items():
        done = projects.rose_hpc("resume", run, *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert words in done.stderr
    assert not (tmp_path / "a").exists()


def test_a_changed_checkpoint_is_not_taken_over(run: Path, tmp_path: Path) -> None:
    """A policy that is not the one that was committed is named, and no run comes of it."""
    weights = run / "iter-0001" / "policy" / "weights.npz"
    kept = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(b"other")
    done = projects.rose_hpc("resume", run, "--from-iteration", 2, "--run-dir", tmp_path / "new")
    weights.write_bytes(kept)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "iter-0001/policy is not what was committed" in done.stderr
    assert not (tmp_path / "new" / "journal.jsonl").exists()
