"""The CartPole example: its parts on their own, and its scripts run by hand as their README shows."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from rose_hpc import ExperienceBank, ShardWriter, merge_shards

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/cartpole"
CONFIG = tomllib.loads((ROOT / "configs/cartpole.toml").read_text())
NO_TORCH = "optional extra: torch is not installed"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The example's modules, importable for one test only: their names are too plain to stay."""
    monkeypatch.syspath_prepend(EXAMPLE)
    names = ("network", "environment", "update", "check")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in (*names, "update_torch"):
        sys.modules.pop(name, None)


def update_torch() -> ModuleType:
    """The PyTorch variant; skips where there is no torch."""
    pytest.importorskip("torch", reason=NO_TORCH)
    return importlib.import_module("update_torch")


def batch(rows: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random transitions, with the columns and dtypes that environment.py writes."""
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(size=(rows, 4)).astype(np.float32),
        "actions": rng.integers(2, size=rows),
        "rewards": rng.normal(size=rows),
        "next_observations": rng.normal(size=(rows, 4)).astype(np.float32),
        "terminations": rng.random(rows) < 0.3,
        "truncations": rng.random(rows) < 0.3,
    }


def script(name: str, *arguments: str, **variables: object) -> str:
    """Run a script of the example as a run would, with ROSE_HPC_<variables>; what it prints."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env |= {f"ROSE_HPC_{key}": str(value) for key, value in variables.items()}
    argv = [sys.executable, str(EXAMPLE / name), *arguments]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def collect(folder: Path, name: str, seed: int = 0, **variables: object) -> Path:
    """A shard by environment.py."""
    path = folder / f"{name}.h5"
    script("environment.py", "parameter=3", STAGE="collect", SEED=seed, SHARD=path, ENVIRONMENT=name, **variables)
    return path


def updated(folder: Path, bank: Path, by: str = "update.py") -> Path:
    """A folder with `policy` and `state` after one update in place; made empty if it is not there."""
    for part in ("policy", "state"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    script(by, STAGE="update", SEED=5, BANK=bank, POLICY=folder / "policy", STATE=folder / "state")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_network_comes_back_as_it_was_saved(example: SimpleNamespace, tmp_path: Path) -> None:
    """Every array keeps its place, bytes and dtype, with more than nine of them too."""
    arrays = [*example.network.new_network(np.random.default_rng(0)), *np.arange(12.0)]
    example.network.save(tmp_path / "n.npz", arrays)
    for before, after in zip(arrays, example.network.load(tmp_path / "n.npz"), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_a_pickle_in_a_policy_is_refused(example: SimpleNamespace, tmp_path: Path) -> None:
    """Loading a policy runs no code that somebody put into it."""
    np.savez(tmp_path / "n.npz", np.array([{"anything": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        example.network.load(tmp_path / "n.npz")


def test_the_gradients_are_those_of_the_huber_loss(example: SimpleNamespace) -> None:
    """Backpropagation agrees with differences of the loss, for every array, below and above the Huber bend."""
    online = [array.astype(np.float64) for array in example.network.new_network(np.random.default_rng(1))]
    data = {**batch(), "observations": batch()["observations"].astype(np.float64)}
    goal = np.random.default_rng(2).normal(scale=2.0, size=32)

    def loss() -> float:
        taken = example.network.values(online, data["observations"])[np.arange(32), data["actions"]]
        error = np.abs(taken - goal)
        return float(np.where(error < 1.0, 0.5 * error**2, error - 0.5).mean())

    for array, gradient in zip(online, example.update.gradients(online, data, goal), strict=True):
        flat = array.reshape(-1)
        for at in np.random.default_rng(3).integers(flat.size, size=10):
            kept, ends = flat[at], []
            for step in (1e-6, -1e-6):
                flat[at] = kept + step
                ends.append(loss())
            flat[at] = kept
            assert gradient.reshape(-1)[at] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_only_a_fallen_pole_ends_the_future(example: SimpleNamespace) -> None:
    """A terminated row is worth its reward; any other adds the target's value of the online network's choice."""
    online, target = (example.network.new_network(np.random.default_rng(seed)) for seed in (1, 2))
    data = batch()
    wanted = example.update.wanted(online, target, data)
    choice = example.network.values(online, data["next_observations"]).argmax(axis=1)
    future = example.network.values(target, data["next_observations"])[np.arange(32), choice]
    future[data["terminations"]] = 0.0
    np.testing.assert_allclose(wanted, 0.1 * data["rewards"] + 0.99 * future, rtol=1e-5)
    assert (data["truncations"] & ~data["terminations"]).any()


def test_adam_goes_on_where_it_was_saved(example: SimpleNamespace, tmp_path: Path) -> None:
    """Ten steps are ten steps, whether or not the optimiser's memory was on disk after the fifth."""
    results = []
    for interrupted in (False, True):
        rng = np.random.default_rng(4)
        online = example.network.new_network(rng)
        adam = example.update.Adam(online)
        for step in range(10):
            if interrupted and step == 5:
                example.network.save(tmp_path / "adam.npz", adam.memory)
                adam = example.update.Adam(online, example.network.load(tmp_path / "adam.npz"))
            adam.step(online, [rng.normal(size=array.shape).astype(np.float32) for array in online])
        results.append(online)
    for straight, resumed in zip(*results, strict=True):
        np.testing.assert_array_equal(straight, resumed)


def test_the_update_learns_which_action_pays(example: SimpleNamespace, tmp_path: Path) -> None:
    """Where one action is always rewarded and the other never, the greedy action becomes the rewarded one."""
    data = batch(500)
    data |= {"rewards": data["actions"].astype(float), "terminations": np.ones(500, dtype=bool)}
    with ShardWriter(tmp_path / "shard.h5") as shard:
        shard.extend(**data)
    online = example.network.new_network(np.random.default_rng(6))
    bank = ExperienceBank.open(tmp_path / "shard.h5")
    example.update.improve(online, example.update.Adam(online), bank, np.random.default_rng(7))
    assert (example.network.values(online, data["observations"]).argmax(axis=1) == 1).mean() > 0.95


def test_exploration_follows_the_policy_but_for_epsilon(example: SimpleNamespace) -> None:
    """At epsilon 0 every action is the policy's; at 1, and without a policy, about half are each."""
    policy = example.network.new_network(np.random.default_rng(8))
    rows = list(example.environment.explore(policy, 0.0, np.random.default_rng(9)))
    assert len(rows) == example.environment.STEPS
    greedy = example.network.values(policy, np.array([row["observation"] for row in rows])).argmax(axis=1)
    np.testing.assert_array_equal([row["action"] for row in rows], greedy)
    for given, epsilon in ((policy, 1.0), (None, 0.0)):
        actions = [row["action"] for row in example.environment.explore(given, epsilon, np.random.default_rng(9))]
        assert 0.4 < np.mean(actions) < 0.6


def test_transitions_follow_one_another(example: SimpleNamespace) -> None:
    """A row begins where the one before it ended, unless an episode ended there."""
    rows = list(example.environment.explore(None, 0.0, np.random.default_rng(10)))
    over = [row["terminated"] or row["truncated"] for row in rows]
    assert any(over)
    for before, after, ended in zip(rows, rows[1:], over, strict=False):
        assert np.array_equal(before["next_observation"], after["observation"]) != ended


def test_both_ways_to_name_an_exploration_rate(example: SimpleNamespace) -> None:
    """``parameter=K`` is the K-th rate of the configuration's grid, ``--epsilon`` the rate itself."""
    rates = CONFIG["environments"]["grid"]["epsilon"]
    rate = example.environment.exploration_rate
    assert [rate([f"parameter={number}"]) for number in range(1, 6)] == rates
    assert [rate(["--epsilon", str(each)]) for each in rates] == rates


@pytest.mark.parametrize(
    "arguments", [[], ["--epsilon", "2"], ["--epsilon", "nan"], ["parameter=6"], ["--epsilon", "0.1", "parameter=1"]]
)
def test_a_wrong_exploration_rate_is_refused(
    example: SimpleNamespace, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no probability, or none, or two at once, ends the script with a usage message."""
    with pytest.raises(SystemExit, match="2"):
        example.environment.exploration_rate(arguments)
    assert "usage:" in capsys.readouterr().err


def test_the_scripts_make_an_iteration_by_hand(tmp_path: Path) -> None:
    """Two rounds of environment, update and check: rows as promised, a policy that is used, a number as last line."""
    first = collect(tmp_path, "env_1")
    bank = ExperienceBank.open(first)
    assert len(bank) == 1000
    assert set(bank.columns) == set(batch())
    folder = updated(tmp_path / "update", first)
    second = collect(tmp_path, "env_2", POLICY=folder / "policy")
    both = tmp_path / "bank.h5"
    merge_shards([first, second], both)
    before = files(folder)
    updated(folder, both)
    assert before.keys() == files(folder).keys() == {"policy/network.npz", "state/adam.npz"}
    assert before["policy/network.npz"] != files(folder)["policy/network.npz"]
    reward = float(script("check.py", STAGE="check", SEED=3, POLICY=folder / "policy").splitlines()[-1])
    assert 8.0 < reward <= 500.0


def test_the_same_seed_is_the_same_iteration(tmp_path: Path) -> None:
    """Repeated scripts write the same transitions and the same policy, byte for byte; another seed, others."""
    shards = [collect(tmp_path, f"env_{number}", seed=seed) for number, seed in enumerate((1, 1, 2))]
    same, again, other = (np.asarray(ExperienceBank.open(path)["observations"]) for path in shards)
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)
    one, two = (updated(tmp_path / name, shards[0]) for name in ("one", "two"))
    assert files(one) == files(two)


def test_the_readmes_commands_work(tmp_path: Path) -> None:
    """What the README says to type in the example's folder runs as it stands, and ends with the mean reward."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    commands = (EXAMPLE / "README.md").read_text().split("```sh\n")[1].split("```")[0]
    commands = commands.replace(" python ", f" {shlex.quote(sys.executable)} ")
    done = subprocess.run(["bash", "-euc", commands], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 8.0 < float(done.stdout.splitlines()[-1]) <= 500.0


def test_the_readme_names_every_file_of_the_example() -> None:
    """A file that is added, renamed or removed is so in the example's README too."""
    text = (EXAMPLE / "README.md").read_text()
    assert {path.name for path in EXAMPLE.glob("*.py")} == {
        word.strip("`") for word in text.split() if word.startswith("`") and word.endswith(".py`") and "/" not in word
    }


def test_torch_takes_the_same_step(example: SimpleNamespace) -> None:
    """The PyTorch variant's gradients are the numpy update's, and its optimiser goes on from the same memory."""
    variant = update_torch()
    import torch

    arrays, other = (example.network.new_network(np.random.default_rng(seed)) for seed in (1, 2))
    memory = example.update.Adam(arrays).memory
    online = [torch.tensor(array, requires_grad=True) for array in arrays]
    adam = variant.new_adam(online, memory)
    columns = {name: torch.from_numpy(column) for name, column in batch().items()}
    variant.loss(online, [torch.tensor(array) for array in other], columns).backward()
    goal = example.update.wanted(arrays, other, batch())
    expected = example.update.gradients(arrays, batch(), goal)
    for array, gradient in zip(online, expected, strict=True):
        np.testing.assert_allclose(array.grad.numpy(), gradient, atol=1e-5)
    adam.step()
    numpy_adam = example.update.Adam(arrays, memory)
    numpy_adam.step(arrays, expected)
    for mine, theirs in zip(numpy_adam.memory, variant.memory_of(adam, online), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_torch_and_numpy_take_turns_on_one_run(tmp_path: Path) -> None:
    """After an update by either script the other goes on from its files, and check.py plays the result."""
    pytest.importorskip("torch", reason=NO_TORCH)
    bank = collect(tmp_path, "env_1")
    for by in ("update_torch.py", "update.py", "update_torch.py"):
        folder = updated(tmp_path / "update", bank, by=by)
    with np.load(folder / "state/adam.npz", allow_pickle=False) as memory:
        assert memory["00"] == 3000
    report = script("check.py", STAGE="check", POLICY=folder / "policy", PARAMETERS=json.dumps({}))
    assert np.isfinite(float(report.splitlines()[-1]))
