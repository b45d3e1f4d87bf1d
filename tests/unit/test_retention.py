"""What retention removes: never what the run still needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rose_hpc import attempts, publishing, retention, rundir
from rose_hpc.patience import Patience
from rose_hpc.progress import Progress
from rose_hpc.workflow import Criterion, Environment, Retention, Work, Workflow

WORK = Work(argv=("true",))


def workflow(retention: Retention, window: int = 1, operator: str | None = ">") -> Workflow:
    criterion = None if operator is None else Criterion(WORK, "MODEL_REWARD", operator, 1e9)
    environments = (Environment("a", WORK), Environment("b", WORK))
    return Workflow(
        "toy", Path("/"), environments, WORK, criterion, max_iterations=99, window=window, retention=retention
    )


def progress_of(rewards: list[float], operator: str | None = None, **merge: str) -> Progress:
    """A run in which so many iterations are complete."""
    progress = Progress(run={"operator": operator})
    for k, reward in enumerate(rewards):
        progress.apply({"kind": "stage", "iteration": k, "stage": "merge", "rows": 1, **merge})
        progress.apply({"kind": "stage", "iteration": k, "stage": "update"})
        progress.apply({"kind": "stage", "iteration": k, "stage": "check", "reward": reward})
        progress.apply({"kind": "checkpoint", "iteration": k})
    return progress


REWARDS = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12)
OPERATORS = st.sampled_from([">", "<", None])


@settings(deadline=None)
@given(REWARDS, st.integers(1, 4) | st.just("all"), OPERATORS)
def test_newest_and_best_policies_stay(rewards, keep, operator):
    """However few policies are kept, the newest and the best are among them, and so many newest as were asked for."""
    flow, newest = workflow(Retention(policies=keep), operator=operator), len(rewards) - 1
    progress = progress_of(rewards, operator)
    for sweep in (False, True):
        gone = retention.expired_policies(flow, progress, newest, sweep=sweep)
        assert not set(gone) & set(range(len(rewards))[-(keep if keep != "all" else 99) :])
        assert progress.best()[0] not in gone


@settings(deadline=None)
@given(REWARDS, st.integers(1, 4), OPERATORS)
def test_policies_go_step_by_step_as_in_one_sweep(rewards, keep, operator):
    """A driver that looks only at what has just left keeps the same policies as one that looks at all of them."""
    flow, kept = workflow(Retention(policies=keep), operator=operator), set()
    for k in range(len(rewards)):
        progress = progress_of(rewards[: k + 1], operator)
        kept.add(k)
        kept -= set(retention.expired_policies(flow, progress, k, sweep=False))
        assert kept == set(range(k + 1)) - set(retention.expired_policies(flow, progress, k, sweep=True))
    assert len(kept) <= keep + 1


@settings(deadline=None)
@given(st.integers(1, 12), st.sampled_from(["all", "window", 1, 2, 5]), st.integers(1, 5))
def test_banks_that_the_window_needs_stay(done, keep, window):
    """No bank goes that the next update will see, and none of the newest that were asked for."""
    flow, progress = workflow(Retention(banks=keep), window=window), progress_of([1.0] * done)
    needed = set(attempts.window(flow, progress_of([1.0] * (done + 1)), done)) - {done}
    asked = set(range(done)) if keep == "all" else set(range(done)[-keep:]) if keep != "window" else set()
    kept = set(range(done))
    for k in range(done):
        kept -= set(retention.expired_banks(flow, progress_of([1.0] * (k + 1)), k, sweep=False))
    assert needed | asked <= kept
    assert kept == set(range(done)) - set(retention.expired_banks(flow, progress, done - 1, sweep=True))


def test_policies_that_a_late_environment_uses_stay():
    """With a policy lag of two, a rank that began two iterations ago still finds the policy it was given."""
    patience = Patience(min_environments=1, deadline_s=1, max_policy_lag=2)
    flow = replace(workflow(Retention(policies=1), operator=None), patience=patience)
    dropped = retention.expired_policies(flow, progress_of([0.0] * 6), 5, sweep=True)
    assert dropped == [1, 2]  # the best is 0; who began in iteration 4 may still run in 6, and uses policy 3


@pytest.fixture
def run(tmp_path: Path) -> rundir.RunDir:
    """A run with the files of three iterations."""
    run = rundir.create("toy", tmp_path / "run")
    for k in range(3):
        for name in ("a", "b"):
            run.shard(k, name).parent.mkdir(parents=True, exist_ok=True)
            run.shard(k, name).write_bytes(b"shard")
        run.bank(k).write_bytes(b"bank")
        for folder in (run.policy(k), run.state(k)):
            folder.mkdir()
            (folder / "weights").write_bytes(b"w")
    return run


def left(run: rundir.RunDir) -> set[str]:
    return {str(path.relative_to(run.path)) for path in run.path.glob("iter-*/**/*")}


def test_files_of_one_iteration_go(run):
    """By default shards go once their bank is recorded, banks once they leave the window; policies and states stay."""
    retention.remove(retention.plan(run, workflow(Retention()), progress_of([1.0, 1.0, 1.0]), 2, sweep=False))
    files = left(run)
    assert "iter-0002/shards" not in files
    assert "iter-0001/shards/a.h5" in files, "one iteration is looked at"
    assert "iter-0001/bank.h5" not in files
    assert "iter-0002/bank.h5" in files
    assert all(f"iter-000{k}/{folder}/weights" in files for k in range(3) for folder in ("policy", "state"))


def test_a_sweep_removes_what_a_killed_driver_left(run):
    """A driver's first pass removes shards, banks, policies and states of all iterations that need not stay."""
    retention.remove(retention.plan(run, workflow(Retention(policies=1)), progress_of([1.0, 3.0, 2.0]), 2, sweep=True))
    assert {name for name in left(run) if "shards" in name} == set()
    assert {name for name in left(run) if name.endswith("bank.h5")} == {"iter-0002/bank.h5"}
    assert {name for name in left(run) if name.endswith("/policy")} == {"iter-0001/policy", "iter-0002/policy"}
    assert {name for name in left(run) if name.endswith("/state")} == {"iter-0001/state", "iter-0002/state"}


@pytest.mark.parametrize(
    ("keep", "merge"),
    [(Retention(shards=True), {}), (Retention(), {"skipped": "no shards"})],
    ids=["asked to", "no bank"],
)
def test_shards_stay(run, keep, merge):
    """Shards stay where that is asked for, and where no bank holds their rows."""
    retention.remove(retention.plan(run, workflow(keep), progress_of([1.0, 1.0, 1.0], **merge), 2, sweep=True))
    assert sum(name.endswith(("a.h5", "b.h5")) for name in left(run)) == 6


def test_damaged_shards_stay(run):
    """A shard that was set aside is evidence: it is never removed."""
    aside = run.shard(2, "a").with_name("a.h5.damaged-0")
    aside.write_bytes(b"?")
    retention.remove(retention.plan(run, workflow(Retention()), progress_of([1.0, 1.0, 1.0]), 2, sweep=True))
    assert {name for name in left(run) if "shards" in name} == {"iter-0002/shards", "iter-0002/shards/a.h5.damaged-0"}


def test_what_cannot_be_removed_ends_nothing(run, monkeypatch):
    """A file that cannot be removed is named, and the others go."""
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "a.h5":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    (problem,) = retention.remove(
        retention.plan(run, workflow(Retention()), progress_of([1.0, 1.0, 1.0]), 2, sweep=False)
    )
    assert problem.startswith(f"cannot remove {run.shard(2, 'a')}: Permission denied; ")
    assert not run.shard(2, "b").exists()
    assert not run.bank(1).exists()


def test_a_folder_is_dropped_as_a_whole(run, monkeypatch):
    """Killed while it removes a policy, a driver leaves no half of one under its name."""
    monkeypatch.setattr(publishing, "remove", lambda path: None)
    publishing.drop(run.policy(0), run.scratch)
    assert not run.policy(0).exists()
    assert [path.name for path in run.scratch.iterdir()] == ["dropped-iter-0000-policy"]
    monkeypatch.undo()
    publishing.drop(run.policy(0), run.scratch)  # gone already
