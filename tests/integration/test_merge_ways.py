"""Every way to merge makes the same bank: threads, parts, and MPI ranks, as spans or through HDF5."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import mpi
import numpy as np
import pytest
import shards
import small
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rose_hpc.execution import host, merging
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.merging import Way
from rose_hpc.experience.digest import ChunkDigests, column_digest, content_digest
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.parts import Parts
from rose_hpc.experience.schema import ShardInfo, renamed
from rose_hpc.experience.shard import seal

RANKS = 5


@pytest.fixture(scope="module")
def server() -> Iterator[mpi.Server]:
    """MPI ranks that merge what they are asked to."""
    if why := mpi.missing():
        pytest.skip(why)
    with mpi.serving(RANKS) as running:
        yield running


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this process; the server's ranks have them too."""
    small.shrink(monkeypatch.setattr)


# -- any shards, any way -----------------------------------------------------------------------------------------------

DTYPES = st.sampled_from(["bool", "int8", "uint16", "int64", "float16", "float32", ">f4", "float64", ">i2"])
COLUMNS = st.dictionaries(
    st.sampled_from(["observations", "next_observations", "x", "y z", "ä"]),
    st.tuples(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, max_side=5)),
    min_size=1,
    max_size=3,
)
WAYS = st.sampled_from(["threads", "parts", "nodes", "mpio"])


def make(
    folder: Path, lengths: list[int], columns: dict[str, tuple[str, tuple[int, ...]]], seed: int
) -> tuple[list[Path], dict[str, np.ndarray]]:
    """Shards of random bytes in such columns, and the columns of all of them together."""
    rng = np.random.default_rng(seed)
    wholes: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    paths = []
    for number, rows in enumerate(lengths):
        paths.append(folder / f"s{number}.h5")
        arrays = {}
        for name, (dtype, shape) in columns.items():
            data = rng.integers(0, 2 if dtype == "bool" else 256, (rows, *shape, np.dtype(dtype).itemsize), np.uint8)
            arrays[name] = data.view(dtype).reshape(rows, *shape)
            wholes[name].append(arrays[name])
        with h5py.File(paths[-1], "w") as file:  # not by our writer, which has no numbers of the other byte order
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
        seal(paths[-1], fsync=False)
    return paths, {name: np.concatenate(parts).astype(parts[0].dtype) for name, parts in wholes.items()}


def digest_of(columns: dict[str, np.ndarray]) -> str:
    """The digest that the format gives such columns: computed here from NumPy's arrays alone."""
    facts = {}
    for name, array in columns.items():
        tree = ChunkDigests()
        tree.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        tree.finish()
        dtype = array.dtype.str if array.dtype.str.startswith(">") else array.dtype.name
        facts[name] = (dtype, array.shape[1:], column_digest(tree.digests.values()))
    return content_digest(len(next(iter(columns.values()))), facts)


def in_parts(paths: list[Path], bank: Path, count: int, verify: bool) -> str | None:
    """A merge in so many parts, one after another, the last first."""
    parts = Parts(bank)
    parts.begin([read_info(path) for path in paths])
    for part in reversed(range(count)):
        parts.copy(parts.draft(), part, count, verify=verify, workers=2, fsync=False)
    info = parts.finish(count, verify=verify, workers=2, fsync=False, attributes={})
    parts.clear()
    return info.digest


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=7),
    columns=COLUMNS,
    way=WAYS,
    processes=st.integers(1, RANKS),
    verify=st.booleans(),
    seed=st.integers(0, 2**32),
)
@example([0, 0], {"x": ("float32", (3,))}, "mpio", 3, True, 0)  # nobody has anything to write
@example([1], {"x": ("int8", ())}, "mpio", RANKS, True, 0)  # all but one have nothing to write
@example([40, 0, 50], {"x": ("float64", (5, 5)), "y z": ("bool", ())}, "mpio", RANKS, True, 0)  # more than shards
@example([40] * 7, {"x": ("float64", (5,))}, "mpio", 2, True, 0)  # fewer
@example([90], {"x": ("float32", (5, 5, 5))}, "mpio", 4, True, 0)  # rows of several chunks: shared by ranks
def test_every_way_makes_what_numpy_makes(
    tmp_path_factory: pytest.TempPathFactory,
    server: mpi.Server,
    small_chunks: None,
    lengths: list[int],
    columns: dict[str, tuple[str, tuple[int, ...]]],
    way: str,
    processes: int,
    verify: bool,
    seed: int,
) -> None:
    """For any columns and lengths, by any number of threads, parts or ranks, a bank is np.concatenate of its shards."""
    folder = tmp_path_factory.mktemp("any")
    paths, wholes = make(folder, lengths, columns, seed)
    bank = folder / "bank.h5"
    if way == "threads":
        digest = merge_shards(paths, bank, workers=processes, verify=verify).digest
    elif way == "parts":
        digest = in_parts(paths, bank, processes, verify)
    else:
        request = {"shards": [str(path) for path in paths], "bank": str(bank), "ranks": processes, "way": way}
        answer = server.ask(**request, verify=verify)
        assert "error" not in answer, answer
        digest = answer["digest"]
    assert digest == (digest_of(wholes) if verify else None)
    found = shards.columns_of(bank)
    assert all(found[name].tobytes() == wholes[name].tobytes() for name in wholes)
    assert [path.name for path in folder.iterdir() if path not in paths] == ["bank.h5"]


def test_damage_and_refusals_reach_all_ranks(server: mpi.Server, small_chunks: None, tmp_path: Path) -> None:
    """What one rank finds is one line that names all that is wrong; nothing appears, and the ranks go on."""
    paths, _ = make(tmp_path, [30, 40, 50], {"x": ("float64", ())}, 0)
    digest = server.ask(shards=[*map(str, paths)], bank=str(tmp_path / "a.h5"), ranks=3, way="mpio", verify=True)
    for number in (0, 2):
        data = bytearray(paths[number].read_bytes())
        data[read_info(paths[number]).columns["x"].offset + 70] ^= 1
        paths[number].write_bytes(data)
    request = {"shards": [*map(str, paths)], "bank": str(tmp_path / "b.h5"), "verify": True}
    for ranks, way in [(1, "mpio"), (3, "mpio"), (5, "mpio"), (3, "nodes")]:
        error = server.ask(**request, ranks=ranks, way=way)["error"]
        assert all(f"s{number}.h5 is damaged: column 'x' is not what was written" in error for number in (0, 2)), error
    for change, text in [
        ({"shards": [str(tmp_path / "none.h5")]}, "none.h5 does not exist"),
        ({"shards": [str(paths[1])] * 2}, "s1.h5 is given twice"),
        ({"shards": [str(paths[1])], "bank": str(paths[1])}, "is one of the shards"),
        ({"shards": [str(paths[1])], "bank": str(tmp_path / "no" / "b.h5")}, "cannot write"),
    ]:
        error = server.ask(**{**request, **change}, ranks=4, way="mpio")["error"]
        assert text in error
        assert "\n" not in error
    again = server.ask(shards=[str(paths[1])], bank=str(tmp_path / "c.h5"), ranks=2, way="mpio", verify=True)
    assert again == {"digest": read_info(paths[1]).digest} != digest
    assert {path.name for path in tmp_path.iterdir()} == {*(path.name for path in paths), "a.h5", "c.h5"}


# -- as people call it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], ShardInfo]:
    """Shards of several chunks, and their bank as threads make it."""
    folder = tmp_path_factory.mktemp("large")
    paths = shards.write_all(folder, [100_000, 0, 1, 700_000, 250_000], width=8)
    return paths, merge_shards(paths, folder / "bank.h5", workers=2)


@pytest.mark.parametrize(("ranks", "way"), [(0, "mpio"), (1, "mpio"), (3, "mpio"), (7, "mpio"), (3, "nodes")])
def test_ranks_merge_real_chunks(large: tuple[list[Path], ShardInfo], tmp_path: Path, ranks: int, way: str) -> None:
    """With the format's own sizes too, so many ranks (0: a program without mpiexec) make the bank that threads make."""
    if why := mpi.missing():
        pytest.skip(why)
    paths, alone = large
    bank = tmp_path / "it's a bank.h5"
    done = mpi.run(ranks, "-m", "rose_hpc.experience.mpio", *map(str, paths), "--output", str(bank), "--way", way)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{bank}: 1050001 rows" in done.stdout
    together = read_info(bank)
    for info in (together, alone):
        nowhere = dict.fromkeys(info.columns, 0)
        assert renamed(info.columns, offset=nowhere) == renamed(alone.columns, offset=nowhere)
    assert (together.shard_offsets, together.episodes) == (alone.shard_offsets, alone.episodes)
    assert together.digest == alone.digest


def test_the_command_line_merges_in_ranks(large: tuple[list[Path], ShardInfo], tmp_path: Path) -> None:
    """``rose-hpc merge --way mpio`` in several ranks speaks once; so it does when something is wrong."""
    if why := mpi.missing():
        pytest.skip(why)
    paths, alone = large
    merge = ("-m", "rose_hpc", "merge", "--way", "mpio", "--output", str(tmp_path / "bank.h5"))
    done = mpi.run(3, *merge, "--json", *map(str, paths))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) | {"seconds": 0} == {
        "bank": str(tmp_path / "bank.h5"),
        **{"rows": alone.rows, "digest": alone.digest, "shards": 5, "way": "mpio", "seconds": 0},
        "bytes": (tmp_path / "bank.h5").stat().st_size,
    }
    (tmp_path / "bad.h5").write_text("no HDF5")
    done = mpi.run(3, *merge, str(tmp_path / "bad.h5"))
    assert done.returncode == 1
    assert done.stderr.count(f"{tmp_path / 'bad.h5'} is not an HDF5 file") == 1


def test_the_pages_commands_work(large: tuple[list[Path], ShardInfo], tmp_path: Path) -> None:
    """What docs/merging.md shows merges two shards, by Debian's Python."""
    if why := mpi.missing():
        pytest.skip(why)
    for number, path in enumerate(large[0][:2], 1):
        (tmp_path / f"env_{number}.h5").symlink_to(path)
    page = (mpi.ROOT / "docs" / "merging.md").read_text()
    lines = [
        line for text in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL) for line in text.splitlines()
    ]
    assert len(lines) == 2
    for line in lines:
        words = line.replace("python3", mpi.PYTHON).replace("rose-hpc", f"{mpi.PYTHON} -m rose_hpc").split()
        done = subprocess.run(words, env=mpi.environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), line
        assert read_info(tmp_path / "bank.h5").rows == 100_000
        (tmp_path / "bank.h5").unlink()


def test_an_error_that_nobody_expects_ends_all_ranks() -> None:
    """A rank that fails where the others wait for it takes them with it, and its traceback is seen."""
    if why := mpi.missing():
        pytest.skip(why)
    code = """if True:
        from mpi4py import MPI
        from rose_hpc.experience.ranks import in_ranks
        def work():
            if MPI.COMM_WORLD.rank == 1:
                raise ZeroDivisionError("unforeseen")
            MPI.COMM_WORLD.Barrier()
        in_ranks(work)
    """
    done = mpi.run(3, "-c", code)
    assert done.returncode != 0
    assert "ZeroDivisionError: unforeseen" in done.stderr


class Here:
    """An engine: merges as a supervisor's service does them, and programs as MPI ranks of Debian's Python."""

    def __init__(self, before_ranks: Callable[[], None]) -> None:
        self.before_ranks = before_ranks

    async def run(self, attempt: Attempt) -> tuple[Outcome, None]:
        if attempt.kind == "command":
            self.before_ranks()
            done = mpi.run(attempt.ranks, *attempt.argv[1:])
            return Outcome(attempt.id, ok=done.returncode == 0, reason="exit", tail=done.stderr), None
        answer, _ = host.merge(attempt.merge or {})
        return Outcome(attempt.id, ok=True, info=answer["info"]), None


def carried_out(paths: list[Path], bank: Path, before_ranks: Callable[[], None]) -> Outcome:
    """A run's merge by three MPI ranks."""
    arguments = {
        **{"phase": "whole", "way": "mpio", "bank": str(bank), "verify": True, "workers": 1, "fsync": True},
        "attributes": {},
        "shards": {str(path): read_info(path).digest for path in paths},
    }
    engine: Any = Here(before_ranks)
    return asyncio.run(merging.merge(engine, Attempt(id="m", kind="merge", merge=arguments), Way("mpio", 3)))


def test_a_runs_merge_may_be_an_mpi_program(large: tuple[list[Path], ShardInfo], tmp_path: Path) -> None:
    """Ranks of another Python fill what a supervisor begins and finishes; their error is the merge's, in one line."""
    if why := mpi.missing():
        pytest.skip(why)
    paths, alone = large
    outcome = carried_out(paths, tmp_path / "bank.h5", lambda: None)
    assert outcome.ok, outcome
    assert outcome.info is not None
    assert outcome.info["digest"] == alone.digest
    bank = tmp_path / "gone.h5"
    outcome = carried_out(paths, bank, lambda: bank.unlink())
    assert (outcome.ok, outcome.reason, outcome.exit_code) == (False, "merge", None)
    assert outcome.message.startswith(f"cannot write {bank}: No such file or directory")
    assert [path.name for path in tmp_path.iterdir()] == ["bank.h5"]
