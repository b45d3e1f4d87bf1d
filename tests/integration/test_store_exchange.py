"""Exchange with others: Minari's datasets, both ways, and a simulator in C."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import projects
import pytest

from rose_hpc.errors import FormatError, SchemaError, UsageError
from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.exchange import export_minari, import_minari
from rose_hpc.experience.foreign import import_foreign
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.shard import ShardWriter

ROOT = Path(__file__).parents[2]
OPTIONAL = "optional extra: minari"


def bank(folder: Path, **more: Any) -> Path:
    """Two environments of three and two episodes; the last of each is cut off."""
    rng = np.random.default_rng(0)
    paths = []
    for name, lengths in (("env_1", [4, 1, 3]), ("env_2", [2, 5])):
        paths.append(folder / f"{name}.h5")
        with ShardWriter(paths[-1], fsync=False) as shard:
            for number, length in enumerate(lengths):
                states = rng.random((length + 1, 3)).astype(np.float32)
                over = np.arange(length) == length - 1
                shard.extend(
                    observations=states[:-1],
                    actions=rng.integers(0, 2, length),
                    rewards=rng.random(length),
                    next_observations=states[1:],
                    terminations=over & (number < len(lengths) - 1),
                    truncations=np.zeros(length, bool),
                    **{name: make(length) for name, make in more.items()},
                )
    merge_shards(paths, folder / "bank.h5")
    return folder / "bank.h5"


def columns(path: Path) -> dict[str, np.ndarray]:
    """All columns of a file."""
    with ExperienceBank.open(path) as opened:
        return {name: np.array(opened[name]) for name in opened.columns}


def test_minari_loads_what_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari itself finds, by name, every episode: observations with the one after the last step, actions, rewards."""
    minari = pytest.importorskip("minari", reason=OPTIONAL)
    source = bank(tmp_path, energy=lambda n: np.arange(n) / 2)
    assert export_minari([source], tmp_path / "sets" / "toy-v0") == 5
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    dataset = minari.load_dataset("toy-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (5, 15)
    assert dataset.observation_space.shape == (3,)
    assert dataset.action_space.n == 2
    with ExperienceBank.open(source) as opened:
        episodes = opened.episodes
        for episode, start, stop, ended in zip(dataset, episodes.starts, episodes.stops, episodes.ended, strict=True):
            assert np.array_equal(episode.observations[:-1], opened["observations"][start:stop])
            assert np.array_equal(episode.observations[1:], opened["next_observations"][start:stop])
            for name in ("actions", "rewards", "terminations"):
                assert np.array_equal(getattr(episode, name), opened[name][start:stop])
            assert np.array_equal(episode.infos["energy"], opened["energy"][start:stop])
            assert bool(episode.truncations[-1]) is not bool(ended)
            assert all(step in dataset.observation_space for step in episode.observations)


@pytest.mark.filterwarnings("ignore:.*is set to None")  # Minari would like authors and links
@pytest.mark.filterwarnings("ignore:.*env_spec:UserWarning")
def test_what_minari_writes_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset made by Minari from a Gymnasium environment becomes a shard of the same steps."""
    minari = pytest.importorskip("minari", reason=OPTIONAL)
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    rng = np.random.default_rng(1)
    buffers = []
    for length in (3, 12):
        ends = [False] * (length - 1) + [True]
        buffers.append(
            EpisodeBuffer(
                observations=rng.random((length + 1, 2)).astype(np.float32),
                actions=rng.integers(0, 3, length),
                rewards=rng.random(length),
                terminations=ends,
                truncations=[False] * length,
                infos={"height": np.arange(length + 1.0), "word": ["x"] * (length + 1)},
            )
        )
    dataset = minari.create_dataset_from_buffers(
        "theirs/toy-v1",
        buffer=buffers,
        observation_space=spaces.Box(-1, 1, (2,), np.float32),
        action_space=spaces.Discrete(3),
    )
    done = projects.rose_hpc("import", "theirs/toy-v1", "-o", tmp_path / "toy.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = columns(tmp_path / "toy.h5")
    for name in ("actions", "rewards", "terminations", "truncations"):
        assert np.array_equal(found[name], np.concatenate([getattr(episode, name) for episode in dataset]))
    assert np.array_equal(found["observations"], np.concatenate([e.observations[:-1] for e in dataset]))
    assert np.array_equal(found["next_observations"], np.concatenate([e.observations[1:] for e in dataset]))
    assert found["height"].tolist() == [*range(1, 4), *range(1, 13)]
    assert "word" not in found


@pytest.mark.parametrize("jump", [False, True])
def test_there_and_back_is_the_same(tmp_path: Path, jump: bool) -> None:
    """Exported and imported, rows are what they were, but that a cut off episode now ends truncated."""
    source = bank(tmp_path, energy=lambda n: np.arange(n) / 2)
    if jump:  # steps that do not begin where the one before ended, as where a simulator skips some
        rows = columns(source)
        rows["next_observations"] = rows["next_observations"] + 1
        with ShardWriter(source, fsync=False) as shard:
            shard.extend(**rows)
    export_minari([source], tmp_path / "toy")
    info = import_foreign(tmp_path / "toy", tmp_path / "back.h5", {"environment": "toy"})
    assert info == read_info(tmp_path / "back.h5")
    assert info.attributes == {"environment": "toy"}
    before, after = columns(source), columns(tmp_path / "back.h5")
    assert list(before) == list(after)
    ended = before["truncations"] != after["truncations"]
    assert np.flatnonzero(ended).tolist() == ([14] if jump else [7, 14])
    for name in before.keys() - {"truncations"}:
        assert np.array_equal(before[name], after[name]), name


def test_a_run_is_exported(folder: Path) -> None:
    """The command writes all banks that a run still holds, in order, and says how many episodes there are."""
    for number in range(2):
        (folder / "run" / f"iter-000{number}").mkdir(parents=True)
        shutil.move(bank(folder), folder / "run" / f"iter-000{number}" / "bank.h5")
    done = projects.rose_hpc("export", "run", "--format", "minari", "--output", "toy-v0", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"dataset": "toy-v0", "format": "minari", "episodes": 10, "files": 2}
    again = projects.rose_hpc("export", "run", "--output", "toy-v0", cwd=folder)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "is there already" in again.stderr


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    """Missing columns and impossible names are errors, and nothing is left behind."""
    with ShardWriter(tmp_path / "a.h5", fsync=False) as shard:
        shard.extend(rewards=np.ones(2), terminations=np.ones(2, bool))
    with pytest.raises(SchemaError, match=r"a\.h5 has no column 'observations', 'actions', 'next_observations'"):
        export_minari([tmp_path / "a.h5"], tmp_path / "set")
    with pytest.raises(UsageError, match="characters"):
        export_minari([tmp_path / "a.h5"], tmp_path / "a set")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def _link(file: h5py.File) -> None:
    del file["episode_0/rewards"]
    file["episode_0/rewards"] = h5py.ExternalLink("secret.h5", "/secret")


def _group_link(file: h5py.File) -> None:
    del file["episode_0"]
    file["episode_0"] = h5py.ExternalLink("secret.h5", "/")


def _virtual(file: h5py.File) -> None:
    del file["episode_0/rewards"]
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource("secret.h5", "secret", shape=(4,))
    file.create_virtual_dataset("episode_0/rewards", layout)


def _dict(file: h5py.File) -> None:
    del file["episode_0/observations"]
    file["episode_0/observations/left"] = np.zeros(5)


def _short(file: h5py.File) -> None:
    del file["episode_0/observations"]
    file["episode_0/observations"] = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (_link, FormatError, "episode_0/rewards is a link"),
        (_group_link, FormatError, "'episode_0' is a link"),
        (_virtual, FormatError, "keeps its data in other files"),
        (_dict, SchemaError, "episode_0/observations is a dict or a tuple"),
        (_short, SchemaError, "4 observations for 4 steps"),
    ],
)
def test_datasets_that_are_no_rows_are_refused_by_name(
    tmp_path: Path, spoil: Any, error: type[Exception], text: str
) -> None:
    """Links, virtual data, dicts and missing steps are each named, in the child as at home, and no shard appears."""
    export_minari([bank(tmp_path)], tmp_path / "set")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = np.zeros(4)
    with h5py.File(tmp_path / "set" / "data" / "main_data.hdf5", "r+") as file:
        spoil(file)
    with pytest.raises(error, match=text):
        import_minari(tmp_path / "set" / "data", tmp_path / "out.h5")
    with pytest.raises(error, match=text):
        import_foreign(tmp_path / "set", tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_jpeg_images_are_refused_by_name(tmp_path: Path) -> None:
    """Images that Minari compressed are not taken for columns."""
    export_minari([bank(tmp_path)], tmp_path / "set")
    metadata = tmp_path / "set" / "data" / "metadata.json"
    space = json.dumps({"type": "Box", "dtype": "uint8", "shape": [64, 64, 3]})
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "observation_space": space}))
    import_minari(tmp_path / "set" / "data", tmp_path / "a.h5")
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "jpeg_encoding": True}))
    with pytest.raises(FormatError, match="observations are JPEG images"):
        import_minari(tmp_path / "set" / "data", tmp_path / "out.h5")
    metadata.write_text("[]")
    with pytest.raises(FormatError, match="is not a Minari dataset's description"):
        import_minari(tmp_path / "set" / "data", tmp_path / "out.h5")


def test_a_plain_file_is_imported_and_stays_as_it_is(folder: Path) -> None:
    """Chunked, compressed columns at a root become a shard; the source is not touched, and errors name it."""
    with h5py.File(folder / "plain.h5", "w") as file:
        file.create_dataset("rewards", data=np.arange(4), chunks=(2,), compression="gzip")
    before = (folder / "plain.h5").read_bytes()
    done = projects.rose_hpc(
        "import", "plain.h5", "--output", "shard.h5", "--environment", "env_1", "--json", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["rows"], facts["attributes"]) == (4, {"environment": "env_1"})
    assert read_info(folder / "shard.h5").columns["rewards"].dtype == "float64"
    assert (folder / "plain.h5").read_bytes() == before
    with h5py.File(folder / "plain.h5", "w") as file:
        file["rewards"] = h5py.ExternalLink("shard.h5", "/rewards")
    for source, text in (("plain.h5", "plain.h5: 'rewards' is a link"), ("none.h5", "none.h5 is neither a file nor")):
        done = projects.rose_hpc("import", source, "--output", "other.h5", cwd=folder)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert text in done.stderr
    assert {path.name for path in folder.iterdir()} == {"plain.h5", "shard.h5"}


# -- C -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def c_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, with its program."""
    there = shutil.which("pkg-config") and subprocess.run(["pkg-config", "--exists", "hdf5"], check=False)
    if not there or there.returncode or not shutil.which("cc") or not shutil.which("make"):
        pytest.skip("needs libhdf5-dev")
    folder = tmp_path_factory.mktemp("c")
    shutil.copytree(ROOT / "examples" / "c_simulator", folder, dirs_exist_ok=True)
    done = subprocess.run(
        ["make", "CFLAGS=-Wall -Wextra -Werror"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_c_program_writes_a_shard(c_example: Path, tmp_path: Path) -> None:
    """What it writes is sealed in place, its rows hang together, and its episodes are found."""
    env = {**os.environ, "ROSE_HPC_SHARD": str(tmp_path / "raw.h5"), "ROSE_HPC_SEED": "3"}
    subprocess.run([c_example / "simulator", "0.2", "500"], env=env, check=True)
    raw = (tmp_path / "raw.h5").read_bytes()
    info = import_foreign(tmp_path / "raw.h5", tmp_path / "shard.h5")
    assert {name: column.describe() for name, column in info.columns.items()} == {
        "observations": "float32(2,)",
        "actions": "int32",
        "rewards": "float64",
        "next_observations": "float32(2,)",
        "terminations": "bool",
        "truncations": "bool",
    }
    assert info.digest is not None
    assert (tmp_path / "shard.h5").read_bytes()[info.columns["observations"].offset :][:4000] in raw
    with ExperienceBank.open(tmp_path / "shard.h5") as opened:
        episodes = opened.episodes
        assert episodes.returns.tolist() == episodes.lengths.tolist()
        for start, stop in zip(episodes.starts, episodes.stops, strict=True):
            assert np.array_equal(
                opened["observations"][start + 1 : stop], opened["next_observations"][start : stop - 1]
            )
        assert (abs(opened["next_observations"][opened["terminations"]][:, 0]) > 2).all()


def test_a_run_of_the_c_program_converges(c_example: Path) -> None:
    """The example's configuration runs as it is."""
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "runs/one", cwd=c_example)
    assert done.returncode == 0, done.stderr
    assert all(projects.records(c_example / "runs/one", "stage", stage="merge")[0]["returns"].values())


def test_a_c_program_that_cannot_write_says_so(c_example: Path, tmp_path: Path) -> None:
    """It ends with something else than 0, so that nothing is published."""
    env = {**os.environ, "ROSE_HPC_SHARD": str(tmp_path / "none" / "raw.h5")}
    done = subprocess.run([c_example / "simulator"], env=env, capture_output=True, check=False)
    assert done.returncode == 1
