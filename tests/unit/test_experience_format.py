"""Sealing files that other programs wrote, and refusing files that no shard may be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from rose_hpc.errors import DamagedError, ExperienceError, FormatError, SchemaError
from rose_hpc.experience import shard as shard_module
from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.format import read_info
from rose_hpc.experience.hdf5 import write_attribute
from rose_hpc.experience.schema import renamed
from rose_hpc.experience.shard import ShardWriter, seal

COLUMNS = {
    "observations": np.random.default_rng(0).random((500, 3)).astype(np.float32),
    "rewards": np.arange(500.0),
    "terminations": np.arange(500) % 50 == 49,
    "codes": np.arange(500, dtype=np.uint16),
}


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A shard with these columns, from the writer."""
    with ShardWriter(tmp_path / "ours.h5", fsync=False) as shard:
        shard.extend(**COLUMNS)
    return tmp_path / "ours.h5"


def plain(path: Path, **options: object) -> Path:
    """A file with these columns, from plain h5py."""
    with h5py.File(path, "w") as file:
        for name, array in COLUMNS.items():
            file.create_dataset(name, data=array, **options)
    return path


# -- sealing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (7,)}, {"chunks": (64,), "compression": "gzip"}, {"maxshape": (None,)}]
)
def test_a_plain_file_becomes_the_shard_our_writer_makes(
    tmp_path: Path, ours: Path, options: dict[str, object]
) -> None:
    """A file from plain HDF5, contiguous, chunked or compressed, is sealed to the writer's digests and statistics."""
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        for name, array in COLUMNS.items():
            fitted = {
                key: value if array.ndim == 1 else (*value, *array.shape[1:]) if isinstance(value, tuple) else value
                for key, value in options.items()
            }
            file.create_dataset(name, data=array, **fitted)
        file.attrs["note"] = "kept"
    info = seal(path, attributes={"environment": "env_1", "seed": 3})
    expected = read_info(ours)
    assert info == read_info(path)
    assert info.digest == expected.digest
    for name in COLUMNS:
        assert info.columns[name].stats == expected.columns[name].stats
    assert info.attributes == {"environment": "env_1", "seed": 3, "note": "kept"}
    assert {file.name for file in tmp_path.iterdir()} == {"ours.h5", "theirs.h5"}


def test_sealing_makes_rewards_floating_and_flags_bool(tmp_path: Path) -> None:
    """A C program's integer rewards and 0/1 flags become what the format asks for; other flags are refused by name."""
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as file:
        file["rewards"] = np.array([1, -2], np.int32)
        file["truncations"] = np.array([0, 1], np.uint8)
    info = seal(path)
    assert {name: column.dtype for name, column in info.columns.items()} == {
        "rewards": "float64",
        "truncations": "bool",
    }
    with h5py.File(path, "r") as file:
        assert file["rewards"][:].tolist() == [1.0, -2.0]
    with h5py.File(path, "w") as file:
        file["truncations"] = np.array([0, 2], np.uint8)
    with pytest.raises(SchemaError, match="'truncations' is bool"):
        seal(path)


def test_sealing_a_shard_again_changes_only_attributes(ours: Path) -> None:
    """Sealing what is sealed keeps its digest, adds and replaces attributes, and otherwise leaves the file alone."""
    before = read_info(ours)
    seal(ours, attributes={"seed": 1})
    info = seal(ours, attributes={"seed": 2, "run": "r", "parameters": {"epsilon": 0.5}})
    assert info.attributes == {"seed": 2, "run": "r", "parameters": {"epsilon": 0.5}}
    assert info.digest == before.digest
    written = ours.read_bytes()
    seal(ours, attributes={"seed": 2})
    assert ours.read_bytes() == written


def test_an_attribute_without_a_value_is_left_out(tmp_path: Path) -> None:
    """HDF5's null attributes say nothing, and are no reason to refuse a file."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["rewards"] = np.zeros(2)
        file.attrs["nothing"] = h5py.Empty("f8")
    assert seal(tmp_path / "a.h5").attributes == {}


def test_an_empty_file_of_hdf5_is_a_shard_without_rows(tmp_path: Path) -> None:
    """A program that had nothing to write may leave an HDF5 file without datasets."""
    h5py.File(tmp_path / "a.h5", "w").close()
    assert seal(tmp_path / "a.h5").rows == 0


def test_a_file_that_claims_more_than_the_disk_holds_is_not_rewritten(tmp_path: Path) -> None:
    """A chunked dataset of a petabyte that was never written is refused before the disk is filled with its zeros."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("observations", shape=(10**12, 128), dtype="f8", chunks=(1024, 128))
    with pytest.raises(FormatError, match=r"claims 1024000000000000 bytes, and has \d+"):
        seal(tmp_path / "a.h5")


def test_a_file_that_does_not_fit_on_the_disk_is_not_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed file that honestly holds more than is free is refused before the disk is full."""
    path = plain(tmp_path / "a.h5", chunks=True)
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage)
    with pytest.raises(ExperienceError, match=r"needs \d+ bytes, and 10 are free; make room"):
        seal(path)


def test_a_failed_rewrite_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a chunked file cannot be rewritten, it stays as it was and no scratch file is left."""
    path = plain(tmp_path / "a.h5", chunks=True)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_module, "create", full)
    with pytest.raises(ExperienceError, match="No space left"):
        seal(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


# -- refusing ----------------------------------------------------------------------------------------------------------


def _external_link(file: h5py.File) -> None:
    file["observations"] = h5py.ExternalLink("other.h5", "/secret")


def _soft_link(file: h5py.File) -> None:
    file["observations"] = h5py.SoftLink("/rewards")


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("observations", shape=(2,), dtype="u1", external=[("/etc/passwd", 0, 2)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(2,), dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "secret", shape=(2,))
    file.create_virtual_dataset("observations", layout)


def _group(file: h5py.File) -> None:
    file.create_group("observations")


def _named_type(file: h5py.File) -> None:
    file["observations"] = np.dtype("f8")


def _text(file: h5py.File) -> None:
    file.create_dataset("observations", data=["a", "b"], dtype=h5py.string_dtype())


def _ragged(file: h5py.File) -> None:
    file.create_dataset("observations", shape=(2,), dtype=h5py.vlen_dtype(np.float64))


def _record(file: h5py.File) -> None:
    file.create_dataset("observations", data=np.zeros(2, [("x", "f4"), ("y", "f4")]))


def _complex(file: h5py.File) -> None:
    file.create_dataset("observations", data=np.zeros(2, complex))


def _enumeration(file: h5py.File) -> None:
    file.create_dataset("observations", shape=(2,), dtype=h5py.enum_dtype({"A": 0, "B": 1}))


def _reference(file: h5py.File) -> None:
    file.create_dataset("observations", shape=(2,), dtype=h5py.ref_dtype)


def _scalar(file: h5py.File) -> None:
    file["observations"] = 1.0


def _no_elements(file: h5py.File) -> None:
    file["observations"] = np.zeros((2, 0))


def _uneven(file: h5py.File) -> None:
    file["observations"] = np.zeros(3)


def _cycle(file: h5py.File) -> None:
    file["observations"] = file["/"]


def _crowd(file: h5py.File) -> None:
    for number in range(4100):
        file[f"c{number}"] = h5py.SoftLink("/rewards")


def _notes(file: h5py.File) -> None:
    for number in range(1100):
        file.attrs[f"note {number}"] = number


def _plugin(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((2,))
    plist.set_filter(305, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple((2,))
    h5py.h5d.create(file.id, b"observations", h5py.h5t.NATIVE_DOUBLE, space, plist)


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (_external_link, FormatError, "'observations' is a link"),
        (_soft_link, FormatError, "'observations' is a link"),
        (_external_storage, FormatError, "'observations' keeps its data in other files"),
        (_virtual, FormatError, "'observations' keeps its data in other files"),
        (_group, FormatError, "'observations' is not a dataset"),
        (_named_type, FormatError, "'observations' is not a dataset"),
        (_text, SchemaError, "'observations' is neither numeric nor bool"),
        (_ragged, SchemaError, "'observations' is neither numeric nor bool"),
        (_record, SchemaError, "'observations' is neither numeric nor bool"),
        (_complex, SchemaError, "'observations' is neither numeric nor bool"),
        (_enumeration, SchemaError, "'observations' has a number type of its own"),
        (_reference, SchemaError, "'observations' is neither numeric nor bool"),
        (_scalar, SchemaError, r"'observations' has shape \(\)"),
        (_no_elements, SchemaError, r"'observations' has shape \(2, 0\)"),
        (_cycle, FormatError, "'observations' is not a dataset"),
        (_crowd, FormatError, "has 4,101 objects"),
        (_notes, FormatError, r"has 1,10\d attributes"),
        (_plugin, FormatError, "'observations' needs filter plugins"),
        (_uneven, SchemaError, "different lengths: 'observations' 3, 'rewards' 2"),
    ],
)
def test_hostile_and_foreign_content_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[h5py.File], None], error: type[ExperienceError], text: str
) -> None:
    """What could open other files, run code or is no column is refused, by name, by sealing and by reading."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["rewards"] = np.zeros(2)
        spoil(file)
    with pytest.raises(error, match=text):
        seal(path)
    with h5py.File(path, "r+") as file:
        write_attribute(file.id, "format", "rose_hpc.experience")
        file.attrs["format_version"] = 2
    with pytest.raises(error, match=text):
        read_info(path)


def test_other_files_and_versions_are_refused(tmp_path: Path, ours: Path) -> None:
    """Text, an unsealed file, a later version, a folder and a missing file each have their own FormatError."""
    (tmp_path / "a.txt").write_text("not HDF5, but long enough")
    unsealed = plain(tmp_path / "plain.h5")
    with h5py.File(ours, "r+") as file:
        file.attrs["format_version"] = 3
    for path, text in [
        (tmp_path / "a.txt", "is not an HDF5 file"),
        (unsealed, "is not a shard or bank"),
        (ours, "has format version 3"),
        (tmp_path, "is not a file"),
        (tmp_path / "none.h5", "does not exist"),
    ]:
        with pytest.raises(FormatError, match=text):
            read_info(path)


def test_a_file_cut_short_is_damaged_wherever_it_is_cut(ours: Path) -> None:
    """Any prefix of a shard is a DamagedError (or no HDF5 at all), never a crash or a shorter shard."""
    whole = ours.read_bytes()
    for length in (0, 5, 9, 100, 1000, len(whole) // 2, len(whole) - 1):
        ours.write_bytes(whole[:length])
        with pytest.raises(DamagedError if length not in (5,) else FormatError) as caught:
            read_info(ours)
        assert str(ours) in str(caught.value)


def test_a_header_that_declares_too_much_is_damaged(tmp_path: Path) -> None:
    """More rows than the file has bytes for are refused when it is sealed, and once more before it is mapped."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["actions"] = np.zeros(1000)
    rows, more = (np.uint64(count).tobytes() for count in (1000, 65_000))
    assert rows in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(rows, more))
    with pytest.raises(DamagedError):
        seal(path)
    with ShardWriter(path, fsync=False) as shard:
        shard.extend(actions=np.arange(1000))
    info = read_info(path)
    for wrong in (replace(info, rows=65_000), replace(info, columns=renamed(info.columns, offset={"actions": 2**40}))):
        with pytest.raises(DamagedError, match="beyond its end"):
            ExperienceBank([wrong])
