"""inspect and merge as users call them: on shards, banks and runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import projects
import pytest

from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.shard import ShardWriter

ENVIRONMENT = """
    import rose_hpc

    task = rose_hpc.current_task()
    with task.shard() as shard:
        for row in range(12):
            shard.append(
                observation=task.rng.random(3), reward=float(task.parameters["rows"]), terminated=row % 4 == 3,
                truncated=False,
            )
"""


def shards(folder: Path) -> list[Path]:
    """Two environments: returns 4, 4 and an episode that goes on; and returns 20, 20."""
    paths = []
    for name, reward, rows in (("env_1", 1.0, 10), ("env_2", 5.0, 8)):
        paths.append(folder / f"{name}.h5")
        with ShardWriter(paths[-1], fsync=False, attributes={"environment": name}) as shard:
            shard.extend(rewards=np.full(rows, reward), terminations=np.arange(rows) % 4 == 3)
    return paths


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose environments have episodes of four rows."""
    folder = tmp_path_factory.mktemp("store")
    config = projects.CONFIG + "\n    [retention]\n    shards = true\n"
    projects.write_project(folder, environment=ENVIRONMENT, config=config)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "runs/it's a run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "it's a run"


def test_inspect_shows_returns_of_each_environment(folder: Path) -> None:
    """A bank's table has each environment's rows, rewards, episodes that ended, and their returns."""
    merge_shards(shards(folder), folder / "bank.h5")
    done = projects.rose_hpc("inspect", "bank.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["env_1", "10", "0", "10", "1", "0", "1", "1", "2", "4", "0", "4", "4"] in lines
    assert ["env_2", "8", "10", "18", "5", "0", "5", "5", "2", "20", "0", "20", "20"] in lines
    facts = json.loads(projects.rose_hpc("inspect", "bank.h5", "--json", cwd=folder).stdout)
    assert [part["returns"]["mean"] for part in facts["environments"]] == [4.0, 20.0]
    assert facts["digest"] == read_info(folder / "bank.h5").digest


def test_the_journal_has_the_returns_of_each_environment(run: Path) -> None:
    """Every merge's record says, for each environment and its parameters, the episodes that ended and their mean."""
    record = projects.records(run, "stage", stage="merge")[0]
    assert {name: (of["parameters"], of["episodes"], of["mean"]) for name, of in record["returns"].items()} == {
        "env_1": ({"rows": 10}, 3, 40.0),
        "env_2": ({"rows": 20}, 3, 80.0),
        "env_3": ({"rows": 30}, 3, 120.0),
    }


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_inspect_draws_returns(run: Path, tmp_path: Path, suffix: str) -> None:
    """--plot writes a picture in which every environment of the run has a line."""
    pytest.importorskip("matplotlib", reason="optional extra: plot")
    done = projects.rose_hpc("inspect", run, "--plot", tmp_path / f"p.{suffix}")
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / f"p.{suffix}").read_bytes()
    assert picture.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        assert all(f"<!-- env_{n} -->".encode() in picture for n in (1, 2, 3))


def test_a_plot_that_cannot_be_drawn_is_one_line(folder: Path) -> None:
    """Nothing to draw, and a suffix nobody knows, are errors with a hint and exit 2."""
    pytest.importorskip("matplotlib", reason="optional extra: plot")
    shards(folder)
    with ShardWriter("bare.h5", fsync=False) as shard:
        shard.extend(rewards=np.zeros(2))
    for file, picture, text in (("bare.h5", "p.png", "no episode ended"), ("env_1.h5", "p.xyz", "cannot draw p.xyz")):
        done = projects.rose_hpc("inspect", file, "--plot", picture, cwd=folder)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert text in done.stderr
        assert not (folder / picture).exists()


def test_check_says_that_all_is_well(run: Path) -> None:
    """A run, one file of it, and all runs of the folder, are checked: journal, shards, banks, policies, states."""
    done = projects.rose_hpc("inspect", "--check", "--json", cwd=run.parent.parent)
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout)
    assert all(verdict["ok"] for verdict in verdicts)
    names = {Path(verdict["file"]).name for verdict in verdicts}
    assert names == {"journal.jsonl", "bank.h5", "env_1.h5", "env_2.h5", "env_3.h5", "policy", "state"}
    bank = next(run.glob("iter-*/bank.h5"))
    done = projects.rose_hpc("inspect", "--check", bank)
    assert (done.returncode, done.stdout) == (0, f"ok       {bank}: a bank of 36 rows\n")


def test_check_finds_what_was_changed(run: Path, tmp_path: Path) -> None:
    """A flipped byte, another file in a bank's place, and a changed policy are each named; the exit is 1."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    first, *_, last = sorted(copy.glob("iter-*/shards/env_1.h5"))
    data = bytearray(first.read_bytes())
    data[read_info(first).columns["rewards"].offset + 3] ^= 1
    first.write_bytes(data)
    merge_shards([last], next(copy.glob("iter-*/bank.h5")))
    weights = next(copy.glob("iter-*/policy/*"))
    weights.chmod(0o644)
    weights.write_bytes(b"something else")
    done = projects.rose_hpc("inspect", "--check", copy, "--json")
    assert done.returncode == 1
    bad = {v["file"]: v["message"] for v in json.loads(done.stdout) if not v["ok"]}
    assert bad == {
        str(first): "column 'rewards' is not what was written",
        str(
            next(copy.glob("iter-*/bank.h5"))
        ): f"{next(copy.glob('iter-*/bank.h5'))} is not the file that was recorded",
        str(weights.parent): "it is not the folder that was recorded",
    }


def test_check_finds_what_is_missing(run: Path, tmp_path: Path) -> None:
    """What the run would go on from is gone, or its records are: the exit is 1, and each is named."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    last = sorted(copy.glob("iter-*"))[-1]
    for name in ("policy", "state"):
        shutil.rmtree(last / name)
    done = projects.rose_hpc("inspect", "--check", copy)
    assert done.returncode == 1
    missing = [line for line in done.stdout.splitlines() if not line.startswith("ok")]
    assert sorted(missing) == [
        f"MISSING  {last / name}: it is gone, and the run goes on from it" for name in ("policy", "state")
    ]
    os.truncate(copy / "journal.jsonl", 0)
    done = projects.rose_hpc("inspect", "--check", copy)
    assert done.returncode == 1
    assert "somebody has emptied it" in done.stdout


def test_a_damaged_journal_is_named_too(run: Path, tmp_path: Path) -> None:
    """--check of a run whose journal does not hold together says so, instead of stopping."""
    (tmp_path / "journal.jsonl").write_bytes((run / "journal.jsonl").read_bytes().replace(b'"seq":3', b'"seq":9'))
    done = projects.rose_hpc("inspect", "--check", tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("DAMAGED")
