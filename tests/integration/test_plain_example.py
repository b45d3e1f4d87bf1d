"""examples/plain: shards that Python writes alone, and the run that is made of them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from array import array
from pathlib import Path
from types import ModuleType

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.shard import seal

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain"


@pytest.fixture(scope="module")
def plain_hdf5() -> ModuleType:
    """The example's module, without its folder on the path."""
    spec = importlib.util.spec_from_file_location("plain_hdf5", EXAMPLE / "plain_hdf5.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.sampled_from("fdbBiq"), st.lists(st.integers(1, 3), max_size=2)), max_size=40),
    rows=st.integers(0, 20),
)
def test_hdf5_reads_what_it_writes(
    plain_hdf5: ModuleType, tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[str, list[int]]], rows: int
) -> None:
    """Every type, any shape, no rows, no columns and many: the same numbers, and a shard once it is sealed."""
    path, columns, wanted = tmp_path_factory.mktemp("plain") / "a.h5", {}, {}
    for number, (kind, shape) in enumerate(kinds):
        values = np.arange(rows * int(np.prod(shape)), dtype=np.dtype(array(kind).typecode)) % 100
        columns[f"column {number}"] = (array(kind, values.tolist()), tuple(shape))
        wanted[f"column {number}"] = values.reshape(rows, *shape)
    plain_hdf5.write(path, columns)
    with h5py.File(path) as file:
        found = {name: file[name][:] for name in file}
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    if columns:
        seal(path)
        with ExperienceBank.open(path) as bank:
            for name, values in wanted.items():
                np.testing.assert_array_equal(bank[name], values)


def test_it_runs(tmp_path: Path) -> None:
    """As it is, until it has converged; its environments see no package."""
    shutil.copytree(EXAMPLE, tmp_path / "plain")
    command = [sys.executable, "-m", "rose_hpc", "run", "config.toml", "--run-dir", tmp_path / "run"]
    done = subprocess.run(command, cwd=tmp_path / "plain", capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    with ExperienceBank.open(max((tmp_path / "run").glob("iter-*/bank.h5"))) as bank:
        assert len(bank.shards) == 16
        assert set(bank.episodes.returns) == {float(n) for n in np.diff([*bank.episodes.starts, len(bank)])}
        assert bank["weights"].shape == (len(bank), 4)
