"""A run directory that is not what it was: one line names what differs and what can be done; nothing is changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import projects
import pytest

from rose_hpc.journal import encode


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with a run of three iterations."""
    folder = tmp_path_factory.mktemp("finished")
    config = projects.CONFIG.replace("[10, 20, 30]", "[2, 3]") + "[merge]\nwindow = 2\n"
    projects.write_project(folder, config=config)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(finished / "r", tmp_path / "the run")
    return tmp_path / "the run"


def committed(run: Path) -> dict[str, str]:
    """What must not be touched: everything but who owns the run."""
    files = (
        path for path in run.rglob("*") if path.is_file() and path.name != "owner.json" and ".owners" not in path.parts
    )
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def of_another_version(run: Path) -> None:
    lines = (run / "journal.jsonl").read_text().splitlines()
    record = {k: v for k, v in json.loads(lines[0]).items() if k != "sum"} | {"format": 7, "version": "9.9"}
    (run / "journal.jsonl").write_bytes(encode(record) + "\n".join([*lines[1:], ""]).encode())


def replace_policy(run: Path) -> None:
    weights = run / "iter-0002/policy/weights.npz"
    weights.chmod(0o644)
    weights.write_bytes(b"another")


def replace_state(run: Path) -> None:
    (run / "iter-0002/state/more").write_bytes(b"another")


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no journal": (
        lambda run: (run / "journal.jsonl").unlink(),
        "its journal.jsonl is gone; bring that back from a copy",
    ),
    "an empty journal": (
        lambda run: os.truncate(run / "journal.jsonl", 0),
        "does not say what the run is, though there are iterations: somebody has emptied it; bring it back from a copy",
    ),
    "another version": (
        of_another_version,
        "has format 7, of rose-hpc 9.9; this version knows 1; go on with that version",
    ),
    "no policy": (
        lambda run: shutil.rmtree(run / "iter-0002/policy"),
        "iter-0002/policy is gone, and the run goes on from",
    ),
    "no state": (
        lambda run: shutil.rmtree(run / "iter-0002/state"),
        "iter-0002/state is gone, and the run goes on from",
    ),
    "no bank": (
        lambda run: (run / "iter-0002/bank.h5").unlink(),
        "iter-0002/bank.h5 is gone, and the run goes on from",
    ),
    "another bank": (
        lambda run: shutil.copyfile(run / "iter-0001/bank.h5", run / "iter-0002/bank.h5"),
        "iter-0002/bank.h5 is not what the merge of its iteration left: it is another bank",
    ),
    "a bank cut short": (
        lambda run: os.truncate(run / "iter-0002/bank.h5", 4000),
        "iter-0002/bank.h5 is not what the merge of its iteration left: ",
    ),
    "another policy": (replace_policy, "iter-0002/policy is not what the update of its iteration left"),
    "another state": (replace_state, "iter-0002/state is not what the update of its iteration left"),
    "another seed": (
        lambda run: edit(run / "config.toml", "seed = 7", "seed = 8"),
        "seed is 8, was 7; a run keeps its name",
    ),
    "other parameters": (
        lambda run: edit(run / "config.toml", "    3,\n", "    4,\n"),
        "environments.grid.rows is [2, 4], was [2, 3]",
    ),
    "no configuration": (lambda run: (run / "config.toml").unlink(), "has no config.toml; bring it back from a copy"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_differs_is_named_and_nothing_is_changed(case: str, run: Path) -> None:
    """Half deleted, of another version, or changed by hand: one line, and every file stays as it was."""
    spoil, words = CASES[case]
    spoil(run)
    before = committed(run)
    done = (
        projects.rose_hpc("resume", run, "--max-iterations", 4)
        if "config" not in case
        else projects.rose_hpc("resume", run)
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert words in done.stderr
    changed = {name for name, digest in committed(run).items() if before.get(name) != digest}
    assert changed <= {"config.toml"}, "--max-iterations is in the configuration, for when the rest is mended"
    assert not before.keys() - committed(run).keys()


def test_who_watches_is_told_of_a_damaged_journal(run: Path) -> None:
    """As who looks or goes on: in one line, and not that the run can be gone on with."""
    edit(run / "journal.jsonl", '"seq":3', '"seq":9')
    for command in ("watch", "status", "resume"):
        done = projects.rose_hpc(command, run)
        assert done.returncode == 1, command
        assert f"{run / 'journal.jsonl'}, line 4 is damaged" in done.stderr, command
        assert "go on with" not in done.stderr, command


def test_a_lost_checkpoint_says_from_where_to_branch(run: Path, tmp_path: Path) -> None:
    """The hint names the last checkpoint that is whole, and it works."""
    shutil.rmtree(run / "iter-0002/policy")
    done = projects.rose_hpc("resume", run, "--max-iterations", 4)
    assert f"or branch off with `rose-hpc resume '{run}' --from-iteration 2 --run-dir NEW`" in done.stderr
    assert projects.rose_hpc("resume", run, "--from-iteration", 2, "--run-dir", tmp_path / "new").returncode == 0
    assert projects.essence(tmp_path / "new") == projects.essence(run)


def test_limits_that_were_changed_by_hand_are_used_and_recorded(run: Path) -> None:
    """An edited threshold is no other run: it is said, used, and a record of the run."""
    edit(run / "config.toml", "threshold = 25.0", "threshold = 35.0")
    done = projects.rose_hpc("resume", run)
    assert done.returncode == 0, done.stderr
    assert "was changed since the run was last driven: check.threshold is 35.0, was 25.0; it is used" in done.stdout
    (record,) = projects.records(run, "extend")
    assert (record["changes"], record["threshold"]) == (["check.threshold=35.0"], 35.0)
    assert [r["reward"] for r in projects.records(run, "stage", stage="check")] == [10.0, 20.0, 30.0, 40.0]
    assert "was changed since" not in projects.rose_hpc("resume", run).stdout


def test_what_is_not_needed_may_be_missing(run: Path) -> None:
    """Logs, old policies, the owner's file and scratch folders can be removed: the run goes on."""
    for name in ("logs", "slurm", "scratch", "iter-0000", ".owners"):
        shutil.rmtree(run / name)
    (run / "owner.json").unlink()
    done = projects.rose_hpc("resume", run, "--set", "check.threshold=35")
    assert done.returncode == 0, done.stderr
    assert projects.records(run, "job")[-1]["epoch"] == 1
    assert (run / "logs").is_dir()


def test_a_policy_replaced_between_update_and_check_is_found(finished: Path, tmp_path: Path) -> None:
    """Also in the middle of an iteration the driver holds what it goes on from against its record."""
    folder = tmp_path / "project"
    config = (finished / "config.toml").read_text()
    check = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\n"
    projects.write_project(folder, config=config, check=check)
    with projects.start("run", "config.toml", "--run-dir", "r", cwd=folder) as driver:
        projects.wait_for(lambda: projects.records(folder / "r", "stage", stage="update"))
    assert driver.returncode == -9
    weights = folder / "r/iter-0000/policy/weights.npz"
    weights.chmod(0o644)
    weights.write_bytes(b"another")
    done = projects.rose_hpc("resume", folder / "r")
    assert "iter-0000/policy is not what the update of its iteration left" in done.stderr
    assert "--from-iteration" not in done.stderr, "there is nothing to branch from"


#: what only looks, and what would write
LOOKING = (("status",), ("logs",), ("watch",), ("report", "--output", "page.html"), ("export", "--output", "new"))
WRITING = (("resume", "--max-iterations", "4"), ("resume", "--set", "check.threshold=35"), ("gc",), ("report",))


def read_only(run: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line where the run directory is mounted read-only, which binds root, too."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd . && exec "$@"'
    verb, *options = arguments
    command = [sys.executable, "-m", "rose_hpc", verb, str(run), *options]
    words = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", mount, str(run)]
    return subprocess.run([*words, *command], cwd=cwd, capture_output=True, text=True, timeout=90, check=False)


@pytest.fixture
def mounts(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or read_only(tmp_path, "--version", cwd=tmp_path).returncode:
        pytest.skip("optional extra: nothing can be mounted here")


def test_a_read_only_run_can_be_looked_at_and_says_why_it_cannot_go_on(mounts: None, run: Path, tmp_path: Path) -> None:
    """Where the run directory cannot be written to, one line says so and what to do; nothing is half done."""
    before = committed(run)
    for words in LOOKING:
        done = read_only(run, *words, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)
    for words in WRITING:
        done = read_only(run, *words, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), (words, done.stdout, done.stderr)
        assert "Read-only file system; the file system is mounted read-only" in done.stderr, words
    assert committed(run) == before
    assert projects.rose_hpc("resume", run, "--set", "check.threshold=35").returncode == 0
